"""PneumoLLM's Tables 2 and 3: is PneumoLLM better than encoders alone, and than CLIP?

    jaxboost study --study pneumollm_rivals --out DIR --config.data.root=FOLDER
    jaxboost study --study pneumollm_rivals:quickstart --out DIR

The first takes a folder of chest radiographs, in five folds by patient, which are the same for all arms: PneumoLLM,
four pretrained encoders of which all weights are trained (Table 2), and CLIP in four ways (Table 3). The weights are
converted before (docs/pneumollm.md). `:quickstart` takes silhouettes of LIDC-IDRI's nodules and weights that come as
Python packages: PneumoLLM with DINOv2-small and SmolLM2-135M, the same without the LLM, DINOv2-small with all weights
trained, and a linear probe of it.

Cost: a step of PneumoLLM needs some 16 GB of memory (estimated). Neither was run as a whole.
Figures of the paper (sensitivity, specificity, ACC, AUC in percent, 630 private radiographs, epoch picked on the fold
that is reported): ResNet 76.55, 54.49, 68.57, 71.11; Swin 74.08, 52.77, 66.34, 67.17; ConvNeXt 69.35, 62.84, 66.99,
67.64; DINOv2 75.56, 57.23, 68.89, 70.40; CLIP zero-shot 98.75, 0, 62.70, 57.62; its probe 53.71, 75.08, 67.31, 27.96;
CoOp 75.05, 51.10, 66.35, 67.90; CoCoOp 74.58, 60.67, 69.53, 71.14; PneumoLLM 80.54, 67.66, 75.87, 78.98.
Expected: on a few hundred images no difference is shown between PneumoLLM and the best encoder alone.
"""

from typing import Any

from jaxboost.studies.study import LADDER, Arm, Comparison, Study

# Row of configs/pneumollm.py -> title, seeds: None for those of the study, 1 where nothing is drawn.
ROWS: dict[str, tuple[str, int | None]] = {
    "clip_zero_shot": ("CLIP, zero-shot (Table 3)", 1),
    "clip_probe": ("CLIP, linear probe (Table 3)", 1),
    "coop_clip": ("CoOp (Table 3)", None),
    "cocoop_clip": ("CoCoOp (Table 3)", None),
    "resnet50": ("ResNet-50 (Table 2)", None),
    "swin": ("Swin-T (Table 2)", None),
    "convnext": ("ConvNeXt-B (Table 2)", None),
    "dinov2": ("DINOv2-S (Table 2)", None),
}
QUICK_ROWS: dict[str, tuple[str, int | None]] = {
    "no_llama": ("PneumoLLM without LLM", None),
    "dinov2": ("DINOv2-S, all weights trained", None),
}

PROBE: dict[str, Any] = dict(
    name="probe",
    title="DINOv2-S, linear probe",
    config="baseline:logistic+2d",
    overrides={"data.folds": 5},
    seeds=1,
)


def get_study(argument: str = "") -> Study:
    """The study; `argument` may be "quickstart"."""
    if argument not in ("", "quickstart"):
        raise ValueError(f"unknown argument {argument!r}: give quickstart, or none")
    config, join = ("pneumollm_quickstart:lidc", "+") if argument else ("pneumollm", ":")
    rows = QUICK_ROWS if argument else ROWS
    given: list[dict[str, Any]] = [PROBE] if argument else []
    given += [
        dict(name=name, title=title, config=f"{config}{join}{name}", seeds=seeds)
        for name, (title, seeds) in rows.items()
    ]
    given += [dict(name="full", title="PneumoLLM", config=config)]
    arms = [Arm(**entry, group=LADDER, rung=number) for number, entry in enumerate(given)]
    return Study(
        name=f"pneumollm_rivals{'_quickstart' if argument else ''}",
        question="Is PneumoLLM better than a pretrained encoder alone?",
        expected="On a few hundred images no difference to the best encoder alone is shown.",
        arms=tuple(arms),
        comparisons=tuple(
            Comparison(
                arm="full",
                reference=arm.name,
                claim=f"PneumoLLM is better than {arm.title.split(' (')[0]}",
                main=arm.name == "dinov2",
            )
            for arm in arms[:-1]
        ),
        seeds=3,
    )

"""PneumoLLM's Tables 2 and 3: is PneumoLLM better than encoders alone, and than CLIP?

    jaxboost study --study pneumollm_rivals --out DIR --config.data.root=FOLDER
    jaxboost study --study pneumollm_rivals:quickstart --out DIR

The first takes a folder of chest radiographs, in five folds by patient, which are the same for all arms: PneumoLLM,
five pretrained encoders of which all weights are trained (Table 2), and CLIP in four ways (Table 3). The weights are
converted before (docs/pneumollm.md). PneumoLLM without LLaMA and with a random LLaMA are there too: of all arms, these
two alone differ from PneumoLLM in nothing but the LLM. All arms that are trained choose their learning rate on
validation, from the same rates. LaVIN and BLIP-2 need questions, and are not in it: `pneumollm_tables:lavin` compares
LaVIN, and `pneumollm:blip2` is a config.
`:quickstart` takes silhouettes of LIDC-IDRI's nodules and weights that come as Python packages: PneumoLLM with
DINOv2-small and SmolLM2-135M, the same without the LLM and with a random one, DINOv2-small with all weights trained,
and a linear probe of it.

Cost: a step of PneumoLLM needs some 16 GB of memory (estimated), and each trained arm has six runs of five folds.
`:quickstart` takes days on two CPU cores (estimated). Neither was run as a whole.
Figures of the paper (sensitivity, specificity, ACC, AUC in percent, 630 private radiographs): ResNet 76.55, 54.49,
68.57, 71.11; ViT 73.56, 51.96, 65.72, 64.23; Swin 74.08, 52.77, 66.34, 67.17; ConvNeXt 69.35, 62.84, 66.99, 67.64;
DINOv2 75.56, 57.23, 68.89, 70.40; CLIP zero-shot 98.75, 0, 62.70, 57.62; its probe 53.71, 75.08, 67.31, 27.96; CoOp
75.05, 51.10, 66.35, 67.90; CoCoOp 74.58, 60.67, 69.53, 71.14; PneumoLLM 80.54, 67.66, 75.87, 78.98. PneumoLLM's
released code picks the epoch on the fold that is reported; how the others' epochs were picked is not given.
Expected: on a few hundred images no difference is shown between PneumoLLM and the best encoder alone, and none that the
LLM makes.
"""

from typing import Any

from jaxboost.studies.study import CONTROL, LADDER, Arm, Comparison, Study

# Row of configs/pneumollm.py -> title, whether it is trained. A linear probe and prompts draw no random numbers.
ROWS: dict[str, tuple[str, bool]] = {
    "clip_zero_shot": ("CLIP, zero-shot (Table 3)", False),
    "clip_probe": ("CLIP, linear probe (Table 3)", False),
    "coop_clip": ("CoOp (Table 3)", True),
    "cocoop_clip": ("CoCoOp (Table 3)", True),
    "resnet50": ("ResNet-50 (Table 2)", True),
    "vit": ("ViT-B/32 (Table 2)", True),
    "swin": ("Swin-T (Table 2)", True),
    "convnext": ("ConvNeXt-B (Table 2)", True),
    "dinov2": ("DINOv2-S (Table 2)", True),
}
QUICK_ROWS: dict[str, tuple[str, bool]] = {"dinov2": ("DINOv2-S, all weights trained", True)}
# The same system without the LLM's weights -> title, what a better PneumoLLM shows.
CONTROLS = {
    "no_llama": ("PneumoLLM without LLM", "the LLM's layers help PneumoLLM"),
    "random_llama": ("PneumoLLM, random LLM", "the weights of the LLM help PneumoLLM"),
}
# The rows' own rates (full training 1e-4, PneumoLLM 3e-4, CoOp 2e-3), and a lower one for full training.
LR_GRID = (2e-5, 1e-4, 3e-4, 2e-3)

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
    # What PneumoLLM's images pass through, as a claim names it.
    system = "DINOv2-S with SmolLM2 (PneumoLLM)" if argument else "CLIP ViT-L/14 with LLaMA (PneumoLLM)"
    rivals: list[dict[str, Any]] = [PROBE] if argument else []
    rivals += [
        dict(name=name, title=title, config=f"{config}{join}{name}", tuned=trained, seeds=None if trained else 1)
        for name, (title, trained) in rows.items()
    ]
    ladder = [*rivals, dict(name="full", title="PneumoLLM", config=config, tuned=True)]
    controls = [
        Arm(name=name, title=title, config=f"{config}{join}{name}", group=CONTROL, tuned=True)
        for name, (title, _) in CONTROLS.items()
    ]
    against_rivals = [
        Comparison(
            arm="full",
            reference=entry["name"],
            claim=f"{system} is the better system than {entry['title'].split(' (')[0]}",
            main=entry["name"] == "dinov2",
        )
        for entry in rivals
    ]
    against_controls = [Comparison(arm="full", reference=name, claim=claim) for name, (_, claim) in CONTROLS.items()]
    return Study(
        name=f"pneumollm_rivals{'_quickstart' if argument else ''}",
        question="Is PneumoLLM better than a pretrained encoder alone?",
        expected="On a few hundred images no gain over the best encoder alone is shown, and none that the LLM makes.",
        arms=(*(Arm(**entry, group=LADDER, rung=number) for number, entry in enumerate(ladder)), *controls),
        comparisons=(*against_rivals, *against_controls),
        seeds=3,
        lr_grid=LR_GRID,
    )

"""PneumoLLM's Tables 4 to 6 and Figure 6: which parts of the model help?

    jaxboost study --study pneumollm_tables --out DIR --config.data.root=FOLDER
    jaxboost study --study pneumollm_tables:quickstart --out DIR
    jaxboost study --study pneumollm_tables:lavin --out DIR --config.data.root=FOLDER

The first takes a folder of chest radiographs, CLIP ViT-L/14 and all of LLaMA-7B, in five folds by patient (see
configs/pneumollm.py for the weights). `:quickstart` takes BreastMNIST, DINOv2-small and SmolLM2-135M, without the
encoders of Figure 6, whose weights it does not have. `:lavin` and `:quickstart+lavin` are Table 5 alone: PneumoLLM's
simplified model against LaVIN, which has a text branch, and against LaVIN with PneumoLLM's adapters (`lavin_rep`). They
need a converted question (docs/pneumollm.md).

Cost: a step of the first needs some 16 GB of memory (estimated); `:quickstart` takes 3 minutes an epoch on two CPU
cores, and has 12 arms of 5 epochs: some 10 hours with three seeds.
Figures of the paper (sensitivity, specificity, ACC, AUC in percent, 630 private radiographs): full 80.54, 67.66, 75.87,
78.98; no LLaMA 77.77, 62.00, 72.06, 75.81; no engine and no emitter 71.56, 71.67, 71.58, 75.21; no adapters either
78.07, 62.77, 72.54, 74.52; CoOp tokens 73.54, 68.56, 71.74, 75.56; CoCoOp tokens 72.57, 70.31, 71.75, 75.80; engine
without emitter 78.29, 66.82, 74.13, 76.42; LaVIN 87.80, 47.52, 73.33, 71.82. Figure 6: four tokens, and CLIP ViT-L/14,
are best.
Expected: the parts of the model differ by less than the folds do; random LLaMA layers do as well as the loaded ones.
"""

from jaxboost.studies.study import CONTROL, SWEEP, Arm, Comparison, Study

# Row of configs/pneumollm.py -> title, what a better full model would show.
ROWS = {
    "no_llama": ("Without LLaMA (Table 4)", "LLaMA helps"),
    "simplified": ("Without engine and emitter (Table 5)", "engine and emitter help"),
    "baseline": ("Without adapters too (Table 6)", "adapters, engine and emitter help"),
    "coop": ("CoOp tokens (Table 6)", "engine and emitter are better than CoOp tokens"),
    "cocoop": ("CoCoOp tokens (Table 6)", "engine and emitter are better than CoCoOp tokens"),
    "engine": ("Engine without emitter (Table 6)", "the emitter helps"),
    "random_llama": ("Random LLaMA", "the weights of LLaMA help"),
    **{f"m{count}": (f"{count} tokens (Figure 6)", f"4 tokens are better than {count}") for count in (1, 2, 6, 8)},
}
ENCODERS = {
    "conv14": ("Patch embedding 14 x 14 (Figure 6)", "CLIP ViT-L/14 is better than a patch embedding"),
    "vit_b16": ("ViT-B/16 (Figure 6)", "CLIP ViT-L/14 is better than ViT-B/16"),
    "vit_l16": ("ViT-L/16 (Figure 6)", "CLIP ViT-L/14 is better than ViT-L/16"),
}


def get_study(argument: str = "") -> Study:
    """The study; `argument` may be "quickstart", "lavin", or both with + between them."""
    words = argument.split("+") if argument else []
    if not set(words) <= {"quickstart", "lavin"} or len(set(words)) < len(words):
        raise ValueError(f"unknown argument {argument!r}: give quickstart, lavin, quickstart+lavin, or none")
    is_quick = "quickstart" in words
    config = "pneumollm_quickstart" if is_quick else "pneumollm"
    if "lavin" in words:
        return _table5(config, quick=is_quick)
    rows = ROWS if is_quick else ROWS | ENCODERS
    full = Arm(name="full", title="PneumoLLM", config=config, group=SWEEP)
    arms = [
        Arm(
            name=name,
            title=title,
            config=f"{config}:{name}",
            group=CONTROL if name == "random_llama" else SWEEP,
        )
        for name, (title, _) in rows.items()
    ]
    return Study(
        name=f"pneumollm_tables{'_quickstart' if is_quick else ''}",
        question="Which parts of PneumoLLM help?",
        expected="The parts differ by less than the folds do.",
        arms=(full, *arms),
        comparisons=tuple(
            Comparison(arm="full", reference=name, claim=claim, main=name == "no_llama")
            for name, (_, claim) in rows.items()
        ),
        seeds=3,
    )


def _table5(config: str, *, quick: bool) -> Study:
    """The text branch: LaVIN and the simplified model, which also differ in the adapters' kind.

    `lavin_rep` has the adapters of the simplified model. The rest of the text branch still differs, as a whole: the
    question's tokens, the causal mask, the last token instead of the mean, frozen answer rows instead of a trained
    head.
    """
    rep = {"pneumollm.adapters": "rep"}
    return Study(
        name=f"pneumollm_table5{'_quickstart' if quick else ''}",
        question="Does the text branch help?",
        expected="The arms differ by less than the folds do.",
        arms=(
            Arm(name="simplified", title="PneumoLLM, simplified (Table 5)", config=f"{config}:simplified", group=SWEEP),
            Arm(name="lavin", title="LaVIN (Table 5)", config=f"{config}:lavin", group=SWEEP),
            Arm(
                name="lavin_rep",
                title="LaVIN without routed adapters",
                config=f"{config}:lavin",
                overrides=rep,
                group=CONTROL,
            ),
        ),
        comparisons=(
            Comparison(
                arm="simplified",
                reference="lavin",
                claim="the simplified model is better than LaVIN, which has a text branch",
                main=True,
            ),
            Comparison(
                arm="simplified",
                reference="lavin_rep",
                claim="with the same adapters it is better than LaVIN",
            ),
        ),
        seeds=3,
    )

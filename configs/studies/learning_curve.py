"""Does the frozen LLM layer help when images are few?

    jaxboost study --study learning_curve --out DIR

R-LLM, the plain ViT and a linear probe on 10, 30 and 100 % of the training patients of LIDC-IDRI's nodule shapes. The
part for 10 % lies inside that for 30 %; each seed draws its own. Validation and test are whole. With fewer images there
are more epochs, up to 40.

Cost, estimated for two CPU cores: a run takes 1 to 3 minutes; with three learning rates and five seeds about 2 hours.
Expected: all curves rise; the linear probe is best at 10 %; R-LLM and the plain ViT do not differ.
"""

from jaxboost.studies.study import SWEEP, Arm, Comparison, Study

EPOCHS = {10: 40, 30: 24, 100: 12}  # percent of the patients -> epochs


def get_study(argument: str = "") -> Study:
    """The study; there are no arguments."""
    if argument:
        raise ValueError(f"unknown argument {argument!r}: there are none")
    arms, comparisons = [], []
    for percent, epochs in EPOCHS.items():
        part = {"data.train_fraction": percent / 100}
        trained = {**part, "train.epochs": epochs, "train.batch_size": 32, "optim.warmup_epochs": 0.5}
        arms += [
            Arm(
                name=f"logistic_{percent}",
                title=f"Linear probe, {percent} %",
                config="baseline:logistic",
                overrides={**part, "baseline.ndim": 3, "baseline.views": "middle", "model.image_size": 98},
                group=SWEEP,
            ),
            Arm(
                name=f"plain_{percent}",
                title=f"Plain ViT, {percent} %",
                config="quickstart",
                overrides={**trained, "boost.kind": "none"},
                group=SWEEP,
                tuned=True,
            ),
            Arm(
                name=f"rllm_{percent}",
                title=f"R-LLM, {percent} %",
                config="quickstart",
                overrides=trained,
                group=SWEEP,
                tuned=True,
            ),
        ]
        comparisons += [
            Comparison(
                arm=f"rllm_{percent}",
                reference=f"plain_{percent}",
                claim=f"the frozen LLM layer helps with {percent} % of the patients",
                main=percent == 10,
            ),
            Comparison(
                arm=f"rllm_{percent}",
                reference=f"logistic_{percent}",
                claim=f"R-LLM beats the linear probe with {percent} % of the patients",
            ),
        ]
    return Study(
        name="learning_curve",
        question="Does the frozen LLM layer help when images are few?",
        expected="The linear probe is best with few images; R-LLM and the plain ViT do not differ.",
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        lr_grid=(2e-4, 5e-4, 1.5e-3),
        shared={"data.name": "lidcshapes3d"},
    )

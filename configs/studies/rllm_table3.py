"""R-LLM's Table 3: ViT3D, ViViT-S and ViViT-M with and without the frozen layer of LLaMA-7B, on a 3D set of MedMNIST.

    jaxboost study --study rllm_table3:vesselmnist3d --out DIR

The argument is fracturemnist3d, adrenalmnist3d, nodulemnist3d or vesselmnist3d (without one).

Needs the converted layer of configs/vesselmnist3d_vivits.py. Cost: on two CPU cores 5.1 s a step of 8 for ViT3D, and
minutes a step of 128 for ViViT-M; an accelerator is needed. Figures of the paper (ACC, AUC in percent, without -> with
the layer): Vessel, ViT3D 90.05, 82.55 -> 91.10, 83.71; ViViT-S 88.74, 83.88 -> 90.31, 84.56; ViViT-M 89.27, 82.31 ->
90.58, 87.03. The majority class alone has 88.7 % of Vessel's test set.
Expected: no difference is shown; the test sets have 240 to 382 volumes.
"""

from jaxboost.studies.study import Arm, Comparison, Study

DATA = ("fracturemnist3d", "adrenalmnist3d", "nodulemnist3d", "vesselmnist3d")
ENCODERS = {"vit3d": "ViT3D", "vivits": "ViViT-S", "vivitm": "ViViT-M"}


def get_study(argument: str = "") -> Study:
    """The study on the data set that `argument` names."""
    data = argument or DATA[-1]
    if data not in DATA:
        raise ValueError(f"unknown argument {argument!r}: give one of {', '.join(DATA)}")
    arms, comparisons = [], []
    for number, (encoder, title) in enumerate(ENCODERS.items()):
        config = f"{data}_{encoder}"
        arms += [
            Arm(name=encoder, title=title, config=config, overrides={"boost.kind": "none"}, rung=2 * number),
            Arm(name=f"{encoder}_rllm", title=f"{title} + R-LLM", config=config, rung=2 * number + 1),
        ]
        comparisons.append(
            Comparison(
                arm=f"{encoder}_rllm",
                reference=encoder,
                claim=f"the frozen LLM layer helps {title}",
                main=encoder == "vivitm",
            )
        )
    return Study(
        name=f"rllm_table3_{data}",
        question=f"Does LLaMA's frozen layer help 3D encoders on {data}?",
        expected="The differences are smaller than this test set can show.",
        arms=tuple(arms),
        comparisons=tuple(comparisons),
    )

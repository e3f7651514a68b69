"""R-LLM's Table 1: ViT-S at 224 pixels with and without the frozen layer of LLaMA-7B, on a 2D set of MedMNIST.

    jaxboost study --study rllm_table1:breastmnist --out DIR

The argument is breastmnist (without one), retinamnist, pneumoniamnist, dermamnist, octmnist or organamnist. There are
also ResNet-18 of Table 2, and the control that the paper lacks: a random frozen layer.

Needs the converted weights of configs/breastmnist_vits.py. Cost: on two CPU cores 8.7 s a step of 32; an accelerator is
needed. Figures of the paper (ACC, AUC in percent, without -> with the layer): Breast 87.17, 86.17 -> 87.17, 88.23;
Retina 54.25, 74.09 -> 57.00, 74.78; Pneumonia 94.23, 97.83 -> 93.91, 98.01; Derma 78.95, 94.27 -> 79.50, 94.50; OCT
83.60, 96.93 -> 85.10, 97.88; OrganA 95.19, 99.75 -> 95.22, 99.78.
Expected: no difference is shown on Breast, Retina and Pneumonia, whose test sets are small (156, 400 and 624 images).
"""

from jaxboost.studies.study import CONTROL, Arm, Comparison, Study

DATA = ("breastmnist", "retinamnist", "pneumoniamnist", "dermamnist", "octmnist", "organamnist")
_RANDOM = {"boost.block": "random", "boost.layers": (31,)}


def get_study(argument: str = "") -> Study:
    """The study on the data set that `argument` names."""
    data = argument or DATA[0]
    if data not in DATA:
        raise ValueError(f"unknown argument {argument!r}: give one of {', '.join(DATA)}")
    config = f"{data}_vits"
    arms = (
        Arm(name="resnet18", title="ResNet-18", config=f"{config}:resnet18", rung=0, note="Table 2's baseline."),
        Arm(name="base", title="ViT-S", config=config, overrides={"boost.kind": "none"}, rung=1),
        Arm(name="rllm", title="ViT-S + R-LLM", config=config, rung=2),
        Arm(name="random", title="ViT-S + random block", config=config, overrides=_RANDOM, group=CONTROL),
    )
    return Study(
        name=f"rllm_table1_{data}",
        question=f"Does LLaMA's frozen layer help ViT-S on {data}?",
        expected="The difference is smaller than this test set can show.",
        arms=arms,
        comparisons=(
            Comparison(arm="rllm", reference="base", claim="the frozen LLM layer helps", main=True),
            Comparison(arm="rllm", reference="random", claim="the weights of the LLM help"),
            Comparison(arm="rllm", reference="resnet18", claim="R-LLM beats ResNet-18"),
        ),
    )

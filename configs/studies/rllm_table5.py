"""R-LLM's Table 5: is it the capacity? ViViT-M with an MLP, with a frozen and with a trained layer of LLaMA-7B.

    jaxboost study --study rllm_table5:adrenalmnist3d --out DIR

The argument is fracturemnist3d or adrenalmnist3d (without one).

Needs the converted layer of configs/adrenalmnist3d_vivitm.py. Cost: ViViT-M takes minutes a step of 128 on two CPU
cores; an accelerator is needed, with some 4 GB more to train the layer.
Figures of the paper (ACC, AUC in percent): Fracture: plain 53.33, 65.21; MLP 54.17, 65.11; R-LLM 56.25, 66.87; trained
53.57, 64.70. Adrenal: plain 81.54, 81.70; MLP 81.88, 82.89; R-LLM 83.22, 84.91; trained 79.87, 81.10.
Expected: the order of the four is not shown with 240 and 298 test volumes.
"""

from jaxboost.studies.study import Arm, Comparison, Study

DATA = ("fracturemnist3d", "adrenalmnist3d")


def get_study(argument: str = "") -> Study:
    """The study on the data set that `argument` names."""
    data = argument or DATA[-1]
    if data not in DATA:
        raise ValueError(f"unknown argument {argument!r}: give one of {', '.join(DATA)}")
    config = f"{data}_vivitm"
    rows = (
        ("plain", "ViViT-M", {"boost.kind": "none"}),
        ("mlp", "ViViT-M + MLP", {"boost.kind": "mlp"}),
        ("rllm", "ViViT-M + R-LLM", {}),
        ("trained", "ViViT-M + R-LLM, layer trained", {"boost.trainable": True}),
    )
    return Study(
        name=f"rllm_table5_{data}",
        question=f"Is it the layer of the LLM or the capacity that helps on {data}?",
        expected="The differences are smaller than this test set can show.",
        arms=tuple(
            Arm(name=name, title=title, config=config, overrides=changes, rung=rung)
            for rung, (name, title, changes) in enumerate(rows)
        ),
        comparisons=(
            Comparison(arm="rllm", reference="plain", claim="the frozen LLM layer helps"),
            Comparison(arm="rllm", reference="mlp", claim="the layer helps more than an MLP", main=True),
            Comparison(arm="rllm", reference="trained", claim="the frozen layer is better than a trained one"),
        ),
    )

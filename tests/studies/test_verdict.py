"""The words of a verdict, its limits, provenance and published figures."""

import dataclasses
import re

import numpy as np
import pytest

from jaxboost.studies import pairs, published, verdict
from jaxboost.studies.compare import analyse
from tests.studies.built import build, with_items, with_results
from tests.studies.records import made_up


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.914, 2, False, ".91"),
        (0.004, 3, True, "+.004"),
        (-0.0114, 3, False, "-.011"),
        (-0.0114, 3, True, "-.011"),
        (1.0, 2, False, "1.00"),
        (-1.0, 3, True, "-1.000"),
        (0.0, 3, True, ".000"),
        (-0.0001, 3, False, ".000"),
        (0.0001, 3, True, ".000"),
        (10.05, 1, False, "10.1"),
        (0.5, 2, True, "+.50"),
    ],
)
def test_short_numbers(value, digits, sign, text):
    assert verdict.short(value, digits, sign=sign) == text


@pytest.mark.parametrize(
    ("auc", "text"),
    [
        ((0.914, 0.872, 0.9449), "Linear probe, AUC .91 [.87, .94]"),
        ((0.91, 0.872, 0.996), "Linear probe, AUC .910 [.872, .996]"),
        ((1.0, 0.98, 1.0), "Linear probe, AUC 1.00 [.98, 1.00]"),
        ((0.9996, 0.98, 0.99997), "Linear probe, AUC .99960 [.98000, .99997]"),
        ((0.995, 0.98, 0.995), "Linear probe, AUC .99 [.98, .99]"),
    ],
)
def test_an_auc_below_1_does_not_become_1(auc, text):
    entry = {"title": "Linear probe", "metrics": {"auc": dict(zip(("mean", "low", "high"), auc, strict=True))}}
    assert verdict.with_auc(entry) == text


def test_reasons_say_why():
    record = build({"plain": 1.0, "rllm": 1.0, "strong": 3.0}, pairs=[("rllm", "plain")])
    reasons = analyse(record, resamples=100)["verdict"]["reasons"]
    assert re.fullmatch(
        r"Arm rllm minus Arm plain: not shown, because its interval holds 0 and Holm's p over patients and seeds is"
        r" \.\d\d, not below \.05 and Holm's p of DeLong's test is \.\d\d, not below \.05( and .* same direction)?",
        reasons[0],
    )
    assert reasons[1].startswith("a difference in AUC of .")
    assert reasons[2:] == [
        "Arm plain is beaten by Arm strong",
        "Arm rllm is beaten by Arm strong",
        "Arm strong is the top rung",
    ]
    expected = {"rllm": "shown, because its interval is above 0", "plain": "opposite, because its interval is below 0"}
    for better, result in expected.items():
        record = build({"plain": 0.5, "rllm": 0.5} | {better: 4.0}, pairs=[("rllm", "plain")])
        reasons = analyse(record, resamples=100)["verdict"]["reasons"]
        assert reasons[0].startswith(f"Arm rllm minus Arm plain: {result}")
        assert reasons[0].endswith("both of Holm's p over the study's comparisons are below .001")


def test_an_arm_that_a_lower_rung_beats_is_not_unbeaten(monkeypatch):
    """The first rung is beaten by the third alone, which need not differ from the second."""
    names = ["first", "second", "third"]
    monkeypatch.setattr(pairs, "rungs", lambda arms: names)
    shown = {("third", "first"): pairs.SHOWN, ("second", "first"): pairs.OPPOSITE}
    ladder = [
        {"arm": arm, "reference": reference, "shown": shown.get((arm, reference), pairs.NOT_SHOWN)}
        for arm, reference in (("second", "first"), ("third", "first"), ("third", "second"))
    ]
    titles = {name: {"title": name} for name in names}
    assert verdict._simplest(None, titles, ladder) == (
        "third",
        ["first is beaten by third", "second is beaten by first", "third is the top rung"],
    )


def test_a_cross_validation_is_several_splits():
    record = build({"plain": 1.0, "rllm": 2.0}, per_patient=2, seeds=2)
    record = with_items(record, "val", patients=record.items["test"].patients[:60])
    one, several = _limits(record), _limits(with_results(record, "plain", folds=[{}, {}]))
    for part in ("One split of the data was used", "patients are in the validation and in the test split"):
        assert part in one
        assert part not in several
    assert "each fold has a model of its own" in several
    assert "each fold has a model of its own" not in one


def test_what_published_figures_say():
    rows = published.figures("vesselmnist3d")
    assert {row["protocol"] for row in rows[:6]} == {
        "best epoch picked on the test split (ACC and AUC separately), one run"
    }
    assert next(row for row in rows if row["method"] == "R-LLM on ViViT-M")["auc"] == 0.8703
    assert rows[-1]["acc"] == [0.932, 0.0076]
    breast = published.figures("breastmnist")
    assert [row["acc"] for row in breast if row["method"].endswith("at any size")] == [[0.906, 0.0109]]
    known, private = (published._file()[key] for key in ("datasets", "radiographs"))
    # CLIP's linear probe has an AUC of 0.28 on PneumoLLM's radiographs.
    for rows, least in (*((rows, 0.4) for rows in known.values()), (private, 0.25)):
        for row in rows:
            assert row.keys() - {"not_run", "row"} == {"source", "method", "protocol", "acc", "auc"}
            means = [value[0] if isinstance(value, list) else value for value in (row["acc"], row["auc"])]
            assert all(value is None or least < value < 1 for value in means)
    assert len(known) == 10
    assert published.figures("mine") == published.figures(None) == []
    record = dataclasses.replace(made_up(), data={"name": "breastmnist"})
    assert analyse(record, resamples=50)["published"] == breast


def test_methods_that_are_not_run_have_a_figure_and_a_reason():
    found = {
        row["method"].split(",")[0]: row["acc"]
        for row in published.figures("octmnist")
        if len(row.get("not_run", "")) > 20
    }
    # R-LLM's Table 2.
    table = {"auto-sklearn": 0.601, "AutoKeras": 0.763, "Google AutoML Vision": 0.771, "MedViT-S": 0.782}
    assert found == {**table, "MedViTV2-L at 224 px": 0.952}


def test_figures_of_other_radiographs_say_so():
    """PneumoLLM's own, where a user's classes are the paper's; else a folder has none."""
    record = made_up()
    folder = dataclasses.replace(record, data={"name": "mine", "source": "folder"})

    def of_classes(*classes):
        config = {"data": {"classes": list(classes)}}
        runs = [dataclasses.replace(run, result={**run.result, "config": config}) for run in record.runs]
        return published.of_study(dataclasses.replace(folder, runs=runs))

    assert published.of_study(folder) == of_classes("normal", "pneumoconiosis", "tuberculosis") == []
    rows = of_classes("normal", "pneumoconiosis")
    assert all(row["protocol"].startswith("other patients, not comparable") for row in rows)
    assert [row["method"] for row in rows if "on the fold that is reported" in row["protocol"]] == ["PneumoLLM"]
    assert [row["method"] for row in rows if "no training" in row["protocol"]] == ["CLIP, zero-shot"]
    vapformer = next(row for row in rows if row["method"] == "VAPFormer")
    assert (vapformer["auc"], vapformer["acc"]) == (0.6339, 0.6115)
    assert vapformer["not_run"]


def test_provenance_lists_what_differs():
    record = build({"plain": 1.0, "rllm": 2.0, "random": 1.0}, seeds=2)
    block = {"source": "x", "sha256": "1", "layers": [29], "dtype": "float32"}
    versions = {"python": "3.11", "jax": "0.10", "device": "cpu"}
    for name, entries in (
        ("plain", {"config": {"data": {"name": "a"}}, "versions": versions, "block": None}),
        ("rllm", {"versions": {**versions, "jax": "0.11", "device": "H100"}, "block": block}),
        ("random", {"versions": versions, "block": {**block, "source": "random", "sha256": "2"}}),
    ):
        record = with_results(record, name, data_sha256="abc", **entries)
    found = analyse(record, resamples=50)["provenance"]
    assert found["versions"] == {"python": "3.11", "jax": "0.10, 0.11"}
    assert (found["device"], found["data_sha256"]) == ("cpu, H100", "abc")
    assert found["configs"]["plain"] == {"data": {"name": "a"}}
    assert found["blocks"] == {
        "block": {"source": "x", "sha256": "1", "layers": [29]},
        "block of random": {"source": "random", "sha256": "2", "layers": [29]},
    }


def _limits(record):
    return " ".join(analyse(record, resamples=50)["limits"])


def test_limits_say_what_is_not_known():
    record = build({"plain": 1.0, "rllm": 2.0}, seeds=2)
    text = _limits(record)
    for part in (
        "The test split has 120 samples; the rarest class, 'class 0', has 60 samples.",
        "Patients are not known",
        "The trained arms have 2 seeds;",
        "No second site",
        "Duplicates across the splits were not looked for.",
        "One split of the data was used",
    ):
        assert part in text
    assert "rough" not in text
    patients = build({"plain": 1.0, "rllm": 2.0}, seeds=5, per_patient=10)
    sites = np.where(np.arange(120) < 60, "A", "B")
    patients = with_items(patients, "test", columns={"Site": sites})
    patients = dataclasses.replace(patients, data={"duplicates": {"test": 0, "train": 0}})
    text = _limits(patients)
    assert "120 samples of 12 patients; the rarest class, 'class 0', has 6 patients. With so few" in text
    for part in ("Patients are not known", "seeds", "No second site", "uplicates"):
        assert part not in text
    text = _limits(dataclasses.replace(patients, data={"duplicates": {"test": 2}}))
    assert "The data set has duplicates" in text
    for text, known in (("3 pairs in different splits", True), ("0 pairs in different splits", False)):
        found = _limits(dataclasses.replace(patients, data={"near_duplicates": text}))
        assert ("The data set has near-duplicates: " in found) == known
        assert "not looked for" not in found
    arms = tuple(dataclasses.replace(arm, learning_rates={"0.1": 0.5}) for arm in patients.arms)
    assert "Learning rates were chosen on validation" in _limits(dataclasses.replace(patients, arms=arms))
    shared = with_items(patients, "val", patients=patients.items["test"].patients[:60])
    assert "6 patients are in the validation and in the test split." in _limits(shared)


def test_more_than_two_classes_are_tested_by_the_jackknife():
    record = build({"plain": 1.0, "rllm": 2.0}, task="multi-class", classes=3, pairs=[("rllm", "plain")])
    found = analyse(record, resamples=50)
    assert 0 < found["comparisons"][0]["delong_p"] < 0.001
    assert any("jackknife over patients" in limit for limit in found["limits"])

"""Records from which little or nothing can be said: nothing fails, and nothing undefined becomes a number."""

import dataclasses
import json

import numpy as np
import pytest

from jaxboost.studies.compare import analyse
from jaxboost.studies.record import ArmRecord, ComparisonRecord, RunRecord
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL, TASKS
from tests.studies.built import build, with_items, with_results

PAIR = [("rllm", "plain")]


def _analyse(record):
    found = analyse(record, resamples=100)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def _undefined(row):
    names = ("difference", "low", "high", "better", "p", "p_holm", "delong_p", "delong_p_holm")
    return {row[name] for name in names} == {None} and row["shown"] == "not shown"


def _without(record, arm, seeds):
    """The record without some runs of an arm."""
    kept = [run for run in record.runs if run.arm != arm or run.seed not in seeds]
    scores = {key: value for key, value in record.scores.items() if key[0] != arm or key[1] not in seeds}
    return dataclasses.replace(record, runs=tuple(kept), scores=scores)


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("per_patient", [1, 2])
def test_a_single_class_in_the_test_split(seeds, per_patient):
    record = build({"plain": 1.0, "rllm": 2.0}, pairs=PAIR, seeds=seeds, per_patient=per_patient)
    record = with_items(record, "test", labels=np.ones_like(record.items["test"].labels))
    found = _analyse(record)
    assert _undefined(found["comparisons"][0])
    assert (found["verdict"]["simplest"], found["ladder"]) == (None, [])
    assert found["verdict"]["sentence"].endswith(
        "Arm rllm minus Arm plain: AUC undefined, because the test split has a single class, 'class 1': not shown"
    )
    for arm in found["arms"]:
        for name in ("auc", "specificity", "balanced_acc"):
            metric = arm["metrics"][name]
            assert [metric[key] for key in ("mean", "sd", "low", "high")] == [None] * 4
            assert metric["per_seed"] == [None] * seeds
            assert metric["method"] == "undefined"
        assert arm["metrics"]["acc"]["mean"] == arm["metrics"]["sensitivity"]["mean"] > 0
        assert arm["roc"] is None
        assert [row["auc"] for row in arm["per_class"]] == [None, None]
        assert arm["per_class"][0]["sensitivity"] is None
        assert arm["calibration"]["brier"] > 0
    assert found["comparisons"][0]["mcnemar"]["p"] is not None
    assert "a single class" in found["limits"][0]
    # Without a main comparison, too.
    found = _analyse(dataclasses.replace(record, comparisons=()))
    assert "AUC of every arm is undefined, because the test split has a single class" in found["verdict"]["sentence"]


@pytest.mark.parametrize("task", [MULTI_CLASS, MULTI_LABEL])
def test_an_absent_class_of_three(task):
    record = build({"plain": 1.0, "rllm": 2.0}, task=task, classes=3, pairs=PAIR, seeds=2)
    labels = record.items["test"].labels.copy()
    if task == MULTI_LABEL:
        labels[:, 2] = 1
    else:
        labels[labels == 2] = 0
    found = _analyse(with_items(record, "test", labels=labels))
    assert _undefined(found["comparisons"][0])
    assert "of 'class 2'" in found["verdict"]["sentence"]
    assert found["arms"][0]["metrics"]["acc"]["mean"] > 0


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_very_few_items(task, seeds):
    classes = 2 if task in (BINARY, MULTI_LABEL) else 3
    for n in range(1, 4):
        found = _analyse(build({"plain": 0.0, "rllm": 9.0}, n=n, task=task, classes=classes, pairs=PAIR, seeds=seeds))
        assert found["comparisons"][0]["shown"] == "not shown"
        assert found["arms"][0]["metrics"]["acc"]["mean"] is not None


def test_one_patient_with_many_items():
    record = build({"plain": 0.0, "rllm": 9.0}, pairs=PAIR, seeds=2)
    record = with_items(record, "test", patients=np.full(120, "p1"))
    found = _analyse(record)
    assert found["comparisons"][0]["shown"] == "not shown"
    assert found["comparisons"][0]["mcnemar"]["p"] is None
    assert any("patient 'p1' has items of the classes" in limit for limit in found["limits"])


@pytest.mark.parametrize("per_patient", [1, 3])
@pytest.mark.parametrize("task", TASKS)
def test_constant_scores(task, per_patient):
    """As a prevalence baseline has them: its AUC is .5, and a good arm beats it."""
    classes = 2 if task == BINARY else 3
    record = build(
        {"plain": 0.0, "rllm": 3.0}, n=180, task=task, classes=classes, pairs=PAIR, seeds=2, per_patient=per_patient
    )
    scores = {
        key: np.full_like(value, 1 / classes) if key[0] == "plain" else value for key, value in record.scores.items()
    }
    found = _analyse(dataclasses.replace(record, scores=scores))
    plain = found["arms"][0]
    assert plain["metrics"]["auc"]["mean"] == 0.5
    assert plain["metrics"]["auc"]["low"] < 0.5 < plain["metrics"]["auc"]["high"]
    assert found["comparisons"][0]["shown"] == "shown"
    assert found["verdict"]["simplest"] == "rllm"
    # A perfect arm against a constant one: no resample changes the difference, which is shown all the same.
    truth = record.items["test"].labels
    perfect = (truth if task == MULTI_LABEL else np.eye(classes)[truth[:, 0]]).astype(np.float32)
    scores |= {("rllm", seed, "test"): perfect for seed in (0, 1)}
    found = _analyse(dataclasses.replace(record, scores=scores))
    (row,) = found["comparisons"]
    assert (row["difference"], row["method"], row["shown"]) == (0.5, "square-and-add", "shown")
    assert found["arms"][1]["metrics"]["auc"]["mean"] == 1 == found["arms"][1]["metrics"]["auc"]["high"]
    assert "AUC 1.00 [" in found["verdict"]["sentence"]


def test_one_arm_alone():
    found = _analyse(build({"probe": 1.5}))
    assert (found["verdict"]["main"], found["verdict"]["simplest"]) == (None, "probe")
    assert found["verdict"]["sentence"].startswith("The only arm is Arm probe, AUC .")
    assert found["verdict"]["sentence"].endswith("]: there is nothing to compare it with")
    assert (found["comparisons"], found["ladder"]) == ([], [])


def test_an_arm_without_runs():
    record = _without(build({"plain": 1.0, "rllm": 2.0, "mlp": 1.0}, pairs=[*PAIR, ("mlp", "plain")]), "mlp", {0, 1, 2})
    found = _analyse(record)
    mlp = found["arms"][2]
    assert (mlp["seeds"], mlp["seconds"], mlp["roc"], mlp["confusion"], mlp["per_class"]) == ([], None, None, None, [])
    assert mlp["metrics"]["auc"] == {
        "mean": None,
        "sd": None,
        "per_seed": [],
        "low": None,
        "high": None,
        "method": "undefined",
    }
    assert mlp["calibration"]["bins"] == []
    good, bad = found["comparisons"]
    assert good["shown"] == "shown"
    assert good["delong_p_holm"] == good["delong_p"]  # of one test
    assert _undefined(bad)
    assert (bad["failed"], bad["missing"]) == (None, {"mlp": "it has not run yet"})
    assert [arm["missing"] for arm in found["arms"]] == [None, None, "it has not run yet"]
    assert "Arm mlp has no finished run: it has not run yet" in found["verdict"]["reasons"]
    for limit in (
        "Without a finished run (it has not run yet): Arm mlp.",
        "Not compared, as runs are missing: Arm mlp minus Arm plain. With them, Holm's p of the other comparisons may"
        " be larger.",
    ):
        assert limit in found["limits"]
    arms = (*record.arms[:2], dataclasses.replace(record.arms[2], missing="it failed: no disk"))
    assert _analyse(dataclasses.replace(record, arms=arms))["arms"][2]["missing"] == "it failed: no disk"
    assert (
        "; of the arms that have runs, the simplest that nothing beats is Arm rllm, AUC" in found["verdict"]["sentence"]
    )
    found = _analyse(_without(record, "rllm", {0, 1, 2}))
    assert found["verdict"]["sentence"].startswith(
        "Arm rllm minus Arm plain: not known, because Arm rllm has no finished run"
    )
    assert "no finished run of Arm rllm; Arm mlp: it has not run yet" in found["verdict"]["reasons"]
    assert "Without a finished run (it has not run yet): Arm rllm; Arm mlp." in found["limits"]


def test_no_runs_at_all_and_no_items():
    record = build({"plain": 1.0, "rllm": 2.0}, pairs=PAIR)
    empty = dataclasses.replace(record, runs=(), scores={})
    without_items = dataclasses.replace(record, items={})
    none = build({"plain": 1.0, "rllm": 2.0}, n=0, pairs=PAIR)
    for each in (empty, without_items, none):
        found = _analyse(each)
        assert "Arm rllm and Arm plain have no finished run" in found["verdict"]["sentence"]
        found = _analyse(dataclasses.replace(each, comparisons=()))
        assert found["verdict"]["sentence"] == "There is no finished run, so nothing is known"
    assert {row["why"] for row in _analyse(without_items)["left_out"]} == {"it has no scores of the test split"}
    assert _analyse(dataclasses.replace(empty, arms=(), comparisons=()))["arms"] == []


def test_seeds_that_differ_between_the_arms():
    record = _without(build({"plain": 1.0, "rllm": 2.0}, seeds=4, pairs=PAIR), "rllm", {0, 2})
    found = _analyse(record)
    assert [arm["seeds"] for arm in found["arms"]] == [[0, 1, 2, 3], [1, 3]]
    assert found["comparisons"][0]["shown"] == "shown"
    assert any("2 to 4 seeds" in limit for limit in found["limits"])


def test_runs_that_cannot_be_used_are_left_out():
    record = build({"plain": 1.0, "rllm": 2.0}, pairs=PAIR)
    scores = dict(record.scores)
    scores["rllm", 0, "test"] = np.full_like(scores["rllm", 0, "test"], np.nan)
    scores["rllm", 1, "test"] = scores["rllm", 1, "test"][:5]
    del scores["plain", 1, "test"]
    foreign = RunRecord(arm="foreign", seed=0, result={})
    found = _analyse(dataclasses.replace(record, scores=scores, runs=(*record.runs, foreign)))
    assert [arm["seeds"] for arm in found["arms"]] == [[0, 2], [2]]
    assert [(row["what"], row["why"]) for row in found["left_out"]] == [
        ("foreign, seed 0", "its arm is not in the study"),
        ("plain, seed 1", "it has no scores of the test split"),
        ("rllm, seed 0", "its scores contain NaN or infinite numbers"),
        ("rllm, seed 1", "its scores have the shape (5, 2), and the test split needs (120, 2)"),
    ]
    scores["rllm", 2, "test"] = scores["rllm", 0, "test"]
    found = _analyse(dataclasses.replace(record, scores=scores))
    assert found["comparisons"][0]["missing"] == {
        "rllm": "its scores contain NaN or infinite numbers;"
        " its scores have the shape (5, 2), and the test split needs (120, 2)"
    }
    # Two runs of one seed have one entry of scores, and are not two seeds.
    twice = dataclasses.replace(record, runs=(*record.runs, record.runs[-1]))
    found = _analyse(twice)
    assert [arm["seeds"] for arm in found["arms"]] == [[0, 1, 2], [0, 1, 2]]
    assert found["left_out"] == [{"what": "rllm, seed 2", "why": "another run of the arm has this seed too"}]


def test_without_scores_of_validation():
    record = build({"plain": 1.0, "rllm": 2.0}, rungs=False)
    assert _analyse(record)["verdict"]["sentence"].startswith("The best arm on validation is Arm rllm, AUC .")
    scores = {key: value for key, value in record.scores.items() if key != ("rllm", 1, "val")}
    found = _analyse(dataclasses.replace(record, scores=scores))
    plain, rllm = found["arms"]
    assert plain["val"]["auc"] > 0.5
    assert rllm["val"] == {"auc": None, "acc": None}
    assert (rllm["calibration"]["temperature"], rllm["calibration"]["ece_scaled"]) == (None, None)
    assert rllm["calibration"]["ece"] > 0
    assert found["verdict"]["sentence"].startswith("The best arm on the test split, which flatters it, is Arm rllm")


def test_the_reference_protocol_is_named():
    record = build({"plain": 1.0, "rllm": 2.0}, pairs=PAIR)
    scores = {key: value for key, value in record.scores.items() if key[2] == "test"}
    items = {"test": record.items["test"]}
    found = _analyse(dataclasses.replace(record, protocol="reference", items=items, scores=scores))
    assert found["verdict"]["sentence"].startswith(
        "Reference protocol, epochs picked on the test split, so all figures are too high: Arm rllm minus Arm plain: "
    )
    assert any(limit.startswith("Reference protocol: ") for limit in found["limits"])
    assert not any("read once" in limit for limit in found["limits"])


def test_trials_are_named():
    strengths = {"plain": 1.0, "rllm": 2.0}
    found = _analyse(build(strengths, seeds=1, pairs=PAIR))
    sentence = found["verdict"]["sentence"]
    assert sentence.startswith("A trial with one seed, which shows nothing yet: Arm rllm minus Arm plain: AUC +.")
    assert "]: shown in this trial alone; the simplest arm" in sentence
    quick = dataclasses.replace(build(strengths, pairs=PAIR), quick=True)
    assert _analyse(quick)["verdict"]["sentence"].startswith("A trial with few epochs, which shows nothing yet: Arm")
    # A baseline without random numbers needs no second seed; a trained arm does.
    record = build(strengths, seeds={"plain": 1, "rllm": 3}, pairs=PAIR)
    assert "trial" in _analyse(record)["verdict"]["sentence"]
    baseline = with_results(record, "plain", config={"baseline": {"classifier": "logistic"}})
    found = _analyse(baseline)
    assert found["verdict"]["sentence"].startswith("Arm rllm minus Arm plain: AUC +")
    assert "Fitted once, so without a spread over seeds: Arm plain." in found["limits"]
    assert found["arms"][0]["metrics"]["auc"]["sd"] is None


def test_a_comparison_with_an_unknown_arm():
    record = build({"plain": 1.0, "rllm": 2.0})
    unknown = ComparisonRecord(arm="rllm", reference="gone", main=True)
    found = _analyse(dataclasses.replace(record, comparisons=(unknown,)))
    assert _undefined(found["comparisons"][0])
    assert "Arm rllm minus gone: not known, because gone has no finished run" in found["verdict"]["sentence"]


def test_titles_stay_as_they_are():
    record = build({"plain": 1.0, "rllm": 2.0}, pairs=PAIR)
    arms = (ArmRecord(name="plain", title="kNN", rung=0), ArmRecord(name="rllm", title="x-LLM", rung=1))
    found = _analyse(dataclasses.replace(record, arms=arms))
    assert found["verdict"]["sentence"].startswith("x-LLM minus kNN: AUC")

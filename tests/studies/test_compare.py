"""The analysis of made-up records against direct calls, other packages and brute force."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from MLstatkit import Delong_test
from scipy import stats
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score

from jaxboost.statistics import calibration, crossed, intervals, paired, pooling, resampled
from jaxboost.studies import pairs, record
from jaxboost.studies.compare import analyse
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from tests.studies.built import build, with_items, with_results

# Three clearly different strengths: AUC of about .5, .75 and .98.
WEAK, MIDDLE, STRONG = 0.0, 1.0, 3.0


def _analyse(study, resamples=200):
    found = analyse(study, resamples=resamples)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def _arm(found, name):
    return next(arm for arm in found["arms"] if arm["name"] == name)


def test_an_arm_that_is_truly_better_is_shown():
    found = _analyse(build({"plain": MIDDLE, "rllm": 2.0}, pairs=[("rllm", "plain")]))
    (row,) = found["comparisons"]
    assert (row["shown"], row["main"], row["claim"], row["metric"]) == ("shown", True, "it helps", "auc")
    assert (row["failed"], row["missing"]) == ([], {})
    assert row["low"] > 0
    assert row["better"] > 0.99
    assert row["delong_p_holm"] < 0.01
    assert row["false_order"] < 0.05
    assert found["verdict"]["simplest"] == "rllm"
    assert re.fullmatch(
        r"Arm rllm minus Arm plain: AUC \+\.\d{3} \[\.\d{3}, \.\d{3}\]: shown;"
        r" the simplest arm that nothing beats is Arm rllm, AUC \.9\d \[\.[89]\d, \.9\d\]",
        found["verdict"]["sentence"],
    )
    assert "trial" not in found["verdict"]["sentence"]


def test_equal_arms_are_not_shown_and_the_opposite_is():
    strengths = {"plain": MIDDLE, "rllm": MIDDLE, "worse": WEAK}
    found = _analyse(build(strengths, pairs=[("rllm", "plain"), ("worse", "plain")]))
    assert [row["shown"] for row in found["comparisons"]] == ["not shown", "opposite"]
    assert found["comparisons"][1]["high"] < 0
    assert found["verdict"]["simplest"] == "plain"
    found = _analyse(build(strengths, pairs=[("worse", "plain")]))
    assert ": the opposite is shown; the simplest arm" in found["verdict"]["sentence"]


def test_a_difference_that_depends_on_the_seed_is_not_shown():
    """The averaged probabilities of four seeds are better, beyond doubt over patients, but two of the seeds are not."""
    study = build({"plain": MIDDLE, "rllm": 6.0, "weak": 0.4}, seeds=4, pairs=[("rllm", "plain")])
    scores = dict(study.scores)
    for seed in (0, 1):
        scores["rllm", seed, "test"] = scores["weak", seed, "test"]
    (row,) = _analyse(dataclasses.replace(study, scores=scores))["comparisons"]
    assert row["delong_difference"] > 0
    assert row["delong_p_holm"] < 0.05
    assert row["low"] < 0 < row["high"]
    assert row["p_holm"] > 0.05
    assert (row["shown"], row["failed"]) == ("not shown", ["interval", "p_holm"])


@pytest.mark.parametrize(
    ("low", "high", "p", "averaged", "shown", "failed"),
    [
        (0.01, 0.03, 0.049, 0.02, "shown", []),
        (0.01, 0.03, 0.05, 0.02, "not shown", ["p"]),
        (0.01, 0.03, np.nan, 0.02, "not shown", ["p"]),
        (0.01, 0.03, 0.001, -0.01, "not shown", ["delong_difference"]),
        (0.01, 0.03, 0.001, 0.0, "not shown", ["delong_difference"]),
        (0.0, 0.03, 0.001, 0.02, "not shown", ["interval"]),
        (-0.03, -0.01, 0.049, -0.02, "opposite", []),
        (-0.03, 0.0, 0.001, -0.02, "not shown", ["interval"]),
        (-0.03, -0.01, 0.001, 0.01, "not shown", ["delong_difference"]),
        (-0.02, 0.03, 0.5, -0.01, "not shown", ["interval", "p", "delong_difference"]),
    ],
)
def test_what_is_shown_needs_the_interval_and_the_tests(low, high, p, averaged, shown, failed):
    row = {"difference": (low + high) / 2, "low": low, "high": high, "delong_difference": averaged}
    for name, other in (("p_holm", "delong_p_holm"), ("delong_p_holm", "p_holm")):
        given = {**row, name: p, other: 0.0}
        given["failed"] = pairs.failed(given)
        assert given["failed"] == [name if each == "p" else each for each in failed]
        assert pairs._shown(given) == shown


def test_an_interval_on_the_other_side_shows_nothing():
    """A BCa interval need not hold the figure."""
    row = {"difference": -0.01, "low": 0.001, "high": 0.03, "p_holm": 0.01, "delong_p_holm": 0.01}
    for averaged in (-0.01, 0.01):
        given = {**row, "delong_difference": averaged}
        given["failed"] = pairs.failed(given)
        assert "interval" in given["failed"]
        assert pairs._shown(given) == "not shown"


def test_the_same_scores_differ_by_nothing():
    study = build({"plain": MIDDLE, "rllm": MIDDLE}, pairs=[("rllm", "plain")])
    scores = {key: study.scores["plain", *key[1:]] for key in study.scores}
    (row,) = _analyse(dataclasses.replace(study, scores=scores))["comparisons"]
    assert (row["difference"], row["better"], row["delong_p"], row["mcnemar"]["p"]) == (0, 0.5, 1, 1)
    assert row["low"] < 0 < row["high"]
    assert (row["false_order"], row["shown"], row["detectable"]) == (0.5, "not shown", {"auc": None, "acc": None})


@pytest.mark.parametrize("order", list(itertools.permutations([WEAK, MIDDLE, STRONG])))
def test_the_simplest_rung_that_nothing_beats(order):
    names = ["first", "second", "third"]
    found = _analyse(build(dict(zip(names, order, strict=True)), seeds=2))
    unbeaten = [name for place, name in enumerate(names) if order[place] == max(order[place:])]
    assert found["verdict"]["simplest"] == unbeaten[0]
    beaten = [reason for reason in found["verdict"]["reasons"] if "is beaten by" in reason]
    assert len(beaten) == names.index(unbeaten[0])
    shown = {(row["arm"], row["reference"]): row["shown"] for row in found["ladder"]}
    assert shown == {
        (names[high], names[low]): "shown" if order[high] > order[low] else "opposite"
        for low, high in itertools.combinations(range(3), 2)
    }


def test_rungs_not_the_order_of_arms_make_the_ladder():
    study = build({"a": STRONG, "b": MIDDLE, "c": MIDDLE}, seeds=2)
    arms = tuple(dataclasses.replace(arm, rung=rung) for arm, rung in zip(study.arms, (7, 3, None), strict=True))
    found = _analyse(dataclasses.replace(study, arms=arms))
    assert [(row["arm"], row["reference"]) for row in found["ladder"]] == [("a", "b")]
    assert found["verdict"]["simplest"] == "a"


@pytest.mark.parametrize("per_patient", [1, 2])
def test_a_comparison_is_what_its_parts_say(per_patient):
    study = build(
        {"plain": MIDDLE, "rllm": 1.4, "other": 1.6},
        seeds={"plain": 3, "rllm": 3, "other": 2},
        per_patient=per_patient,
        pairs=[("rllm", "plain"), ("other", "plain"), ("other", "rllm")],
    )
    rows = _analyse(study)["comparisons"]
    labels, patients = study.items["test"].labels, study.items["test"].patients
    groups = patients if per_patient > 1 else None
    for row in rows:
        a, b = (study.scores_of(row[end], "test").astype(float) for end in ("arm", "reference"))
        paired_seeds = len(a) == len(b)
        options = {"groups": groups, "paired_seeds": paired_seeds, "resamples": 200}
        expected = crossed.compare(a, b, labels, BINARY, "auc", **options)
        assert (row["difference"], row["low"], row["high"]) == (expected.difference, expected.low, expected.high)
        assert (row["better"], row["p"]) == (expected.p_better, expected.p)
        mean_a, mean_b = a.mean(0), b.mean(0)
        if groups is None:
            _, p, *_ = Delong_test(labels[:, 0], mean_a[:, 1], mean_b[:, 1], verbose=0)
            assert row["delong_p"] == pytest.approx(p)
            se = abs(row["delong_difference"]) / stats.norm.isf(p / 2)
            assert row["detectable"]["auc"] == pytest.approx((1.959964 + 0.841621) * se, rel=1e-4)
        else:
            assert row["delong_p"] == paired.delong_test(labels[:, 0] == 1, mean_a[:, 1], mean_b[:, 1], groups=groups).p
        areas = [roc_auc_score(labels[:, 0], mean[:, 1]) for mean in (mean_a, mean_b)]
        assert row["delong_difference"] == pytest.approx(areas[0] - areas[1])
        of_patients = [pooling.pool(labels, mean, patients, BINARY) for mean in (mean_a, mean_b)]
        right = [(each.probabilities[:, 1] > 0.5) == each.labels[:, 0] for each in of_patients]
        only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        assert (row["mcnemar"]["only_arm"], row["mcnemar"]["only_reference"]) == only
        assert row["mcnemar"]["p"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
        assert row["false_order"] == pytest.approx(stats.beta.cdf(0.5, only[0] + 1, only[1] + 1))
        accs = [np.mean([(run[:, 1] > 0.5) == labels[:, 0] for run in arm]) for arm in (a, b)]
        assert row["acc_difference"] == pytest.approx(accs[0] - accs[1])
    for name, parts in (("delong_p", rows), ("p", rows), ("p", [row["mcnemar"] for row in rows])):
        assert [part[f"{name}_holm"] for part in parts] == pytest.approx(_holm([part[name] for part in parts]))


@pytest.mark.parametrize("seeds", [(0, 1), (0, 2)])
def test_runs_are_paired_by_their_seeds_and_not_by_their_places(seeds):
    study = build({"plain": MIDDLE, "rllm": 1.4}, seeds=3, pairs=[("rllm", "plain")])
    kept = {("plain", seed) for seed in (0, 1)} | {("rllm", seed) for seed in seeds}
    study = dataclasses.replace(
        study,
        runs=tuple(run for run in study.runs if (run.arm, run.seed) in kept),
        scores={key: value for key, value in study.scores.items() if key[:2] in kept},
    )
    (row,) = _analyse(study)["comparisons"]
    labels, runs = (
        study.items["test"].labels,
        [study.scores_of(name, "test").astype(float) for name in ("rllm", "plain")],
    )
    found = [
        crossed.compare(*runs, labels, BINARY, "auc", paired_seeds=paired_seeds, resamples=200)
        for paired_seeds in (True, False)
    ]
    assert found[0].p != found[1].p
    assert (row["low"], row["p"]) == ((expected := found[seeds != (0, 1)]).low, expected.p)


def _holm(values):
    """Holm's p values by their definition."""
    found, highest = np.empty(len(values)), 0.0
    for place, index in enumerate(np.argsort(values)):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        found[index] = highest
    return found


def test_the_crossed_bootstrap_on_a_tiny_case_by_brute_force():
    """P(A > B) over all draws of 4 patients and all pairs of 2 and 3 seeds, whose draws are too many for one sample."""
    study = build({"b": 0.3, "a": 0.8}, n=4, seeds={"a": 2, "b": 3}, pairs=[("a", "b")])
    labels = study.items["test"].labels[:, 0]
    a, b = (study.scores_of(name, "test")[..., 1] for name in "ab")

    def auc(run, drawn):
        above, below = run[drawn[labels[drawn] == 1]][:, None], run[drawn[labels[drawn] == 0]]
        return ((above > below) + 0.5 * (above == below)).mean()

    wins = []
    for drawn in map(np.array, itertools.product(range(4), repeat=4)):
        if len(set(labels[drawn])) == 2:
            of_a, of_b = ([auc(run, drawn) for run in arm] for arm in (a, b))
            wins += [np.sign(x - y) / 2 + 0.5 for x, y in itertools.product(of_a, of_b)]
    (row,) = _analyse(study, resamples=20_000)["comparisons"]
    assert row["better"] == pytest.approx(np.mean(wins), abs=0.01)
    assert 0.05 < row["better"] < 0.95


@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS, ORDINAL, MULTI_LABEL])
@pytest.mark.parametrize("per_patient", [1, 2])
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_figures_of_an_arm(task, per_patient, seeds):
    classes = 2 if task == BINARY else 3
    study = build({"a": MIDDLE, "b": 2.0}, task=task, classes=classes, per_patient=per_patient, seeds=seeds)
    found = _analyse(study)
    test, val = study.items["test"], study.items["val"]
    groups = test.patients if per_patient > 1 else None
    for arm in found["arms"]:
        runs = study.scores_of(arm["name"], "test").astype(float)
        expected = resampled.figures_of_runs(test.labels, runs, task, groups=groups, resamples=200)
        assert set(arm["metrics"]) == set(expected)
        for name, figure in expected.items():
            metric = arm["metrics"][name]
            assert metric["per_seed"] == figure.resampled.values.tolist()
            assert metric["mean"] == pytest.approx(np.mean(metric["per_seed"]))
            assert metric["sd"] == (pytest.approx(np.std(metric["per_seed"], ddof=1)) if seeds > 1 else None)
            assert (metric["low"], metric["high"], metric["method"]) == (*figure.interval, figure.method)
            assert metric["low"] < metric["mean"] < metric["high"]
            assert metric["method"].endswith("-patients") == (per_patient > 1)
        if seeds == 1:
            limits, _ = intervals.split_intervals(test.labels, runs[0], task, groups=groups, resamples=200)
            assert (arm["metrics"]["auc"]["low"], arm["metrics"]["auc"]["high"]) == limits["auc"]
        on_val = study.scores_of(arm["name"], "val").astype(float)
        temperatures = [calibration.fit_temperature(val.labels, run, task) for run in on_val]
        assert arm["calibration"]["temperature"] == pytest.approx(np.mean(temperatures))
        scaled = [calibration.apply_temperature(*each, task) for each in zip(runs, temperatures, strict=True)]
        for name, each in (("ece", runs), ("ece_scaled", scaled)):
            assert arm["calibration"][name] == pytest.approx(
                np.mean([calibration.ece(test.labels, run, task) for run in each])
            )
        assert arm["calibration"]["brier"] == pytest.approx(
            np.mean([calibration.brier(test.labels, run, task) for run in runs])
        )
        predictions = len(test.labels) * (classes if task == MULTI_LABEL else 1)
        assert sum(each["count"] for each in arm["calibration"]["bins"]) == predictions
        _check_classes(arm, test.labels, runs, task)
        assert (arm["seconds"], arm["parameters"]["frozen"]) == (2 + (seeds - 1) / 2, 5)


def _check_classes(arm, labels, runs, task):
    """Curves, confusion and classes against scikit-learn."""
    multi_label = task == MULTI_LABEL
    for number, row in enumerate(arm["per_class"]):
        truth = labels[:, number] if multi_label else (labels[:, 0] == number).astype(int)
        assert row["n"] == truth.sum()
        assert row["auc"] == pytest.approx(np.mean([roc_auc_score(truth, run[:, number]) for run in runs]))
        chosen = [run[:, number] > 0.5 if multi_label else run.argmax(1) == number for run in runs]
        assert row["sensitivity"] == pytest.approx(np.mean([recall_score(truth, each) for each in chosen]))
    if multi_label:
        assert arm["confusion"] is None
    else:
        assert arm["confusion"] == sum(confusion_matrix(labels[:, 0], run.argmax(1)) for run in runs).tolist()
    if task != BINARY:
        assert arm["roc"] is None
        return
    x, y = np.array(arm["roc"]).T
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels[:, 0], runs.mean(0)[:, 1]))
    assert arm["roc"][0] == [0, 0]
    assert arm["roc"][-1] == [1, 1]


def test_both_classes_of_two_have_one_auc():
    """Sure probabilities that are 1 as float32 have complements that differ."""
    study = build({"a": MIDDLE})
    scores = {key: value.copy() for key, value in study.scores.items()}
    for value in scores.values():
        high = value[:, 1] > 0.5
        value[high, 1] = 1
        value[high, 0] = np.arange(high.sum()) * 1e-12
    (arm,) = _analyse(dataclasses.replace(study, scores=scores))["arms"]
    assert [row["auc"] for row in arm["per_class"]] == pytest.approx([arm["metrics"]["auc"]["mean"]] * 2, abs=1e-12)


def test_a_roc_curve_has_no_more_points_than_can_be_seen(monkeypatch):
    monkeypatch.setattr("jaxboost.studies.arms._ROC_POINTS", 6)
    (arm,) = _analyse(build({"a": MIDDLE}))["arms"]
    assert len(arm["roc"]) == 6
    assert (arm["roc"][0], arm["roc"][-1]) == ([0, 0], [1, 1])


def test_the_same_record_gives_the_same_analysis():
    """In whatever order its runs are; and twice in one process."""
    study = build({"a": MIDDLE, "b": STRONG}, pairs=[("b", "a")], per_patient=2, n=40)
    shuffled = dataclasses.replace(study, runs=study.runs[::-1], scores=dict(reversed(study.scores.items())))
    assert json.dumps(_analyse(shuffled, 50)) == json.dumps(_analyse(study, 50))


def test_a_record_from_disk_gives_the_same_analysis(tmp_path):
    ours = build({"a": MIDDLE, "b": STRONG}, pairs=[("b", "a")], seeds=2)
    record.write(ours, tmp_path)
    assert _analyse(record.read(tmp_path)) == _analyse(ours)


def test_a_learning_curve():
    strengths = {"ten": 0.5, "thirty": 1.0, "all": 2.0}
    study = build(strengths, seeds=2)
    changes = ({"data.train_fraction": 0.1}, {"data.train_fraction": 0.3}, {})
    study = dataclasses.replace(
        study,
        arms=tuple(dataclasses.replace(arm, changes=each) for arm, each in zip(study.arms, changes, strict=True)),
    )
    for name, n in (("ten", 10), ("thirty", 30)):
        study = with_results(study, name, splits={"train": n})
    found = _analyse(study)
    assert [(point["arm"], point["fraction"], point["n"]) for point in found["learning_curve"]] == [
        ("ten", 0.1, 10),
        ("thirty", 0.3, 30),
        ("all", 1.0, None),
    ]
    for point in found["learning_curve"]:
        auc = _arm(found, point["arm"])["metrics"]["auc"]
        assert (point["auc"], point["low"], point["high"]) == (auc["mean"], auc["low"], auc["high"])
    # The fraction that all configs have in common is no curve.
    study = build({"a": 1.0, "b": 1.0}, seeds=1)
    for name in "ab":
        study = with_results(study, name, config={"data": {"train_fraction": 0.3}})
    assert _analyse(study)["learning_curve"] == []
    study = with_results(study, "b", config={"data": {"train_fraction": 0.6}})
    assert [point["fraction"] for point in _analyse(study)["learning_curve"]] == [0.3, 0.6]


def test_subgroups_of_the_main_comparison():
    study = build({"plain": MIDDLE, "rllm": 1.5, "other": MIDDLE}, pairs=[("rllm", "plain")], seeds=2)
    n = len(study.items["test"].labels)
    columns = {
        "site": np.where(np.arange(n) < 50, "A", "B"),
        "rare": np.where(np.arange(n) < 9, "few", "many"),
        "unknown": np.where(np.arange(n) < 50, "", np.where(np.arange(n) < 80, "x", "y")),
        "many": np.array([str(number % 11) for number in range(n)]),
    }
    found = _analyse(with_items(study, "test", columns=columns))["subgroups"]
    assert [(row["arm"], row["column"], row["value"], row["n"]) for row in found] == [
        (arm, *rest)
        for arm in ("rllm", "plain")
        for rest in (("site", "A", 50), ("site", "B", 70), ("unknown", "x", 30), ("unknown", "y", 40))
    ]
    labels = study.items["test"].labels[:50, 0]
    runs = study.scores_of("rllm", "test")[:, :50, 1]
    assert found[0]["auc"] == pytest.approx(np.mean([roc_auc_score(labels, run) for run in runs]))
    assert found[0]["low"] < found[0]["auc"] < found[0]["high"]


def test_what_the_best_epoch_on_test_adds():
    study = build({"a": MIDDLE}, seeds=2)
    found = _analyse(study)
    assert _arm(found, "a")["best_on_test_minus_reported"] is None
    assert any("picking the epoch on the test split would add is not known" in limit for limit in found["limits"])
    reported = _arm(found, "a")["metrics"]
    curves = [[{"step": 1, "test_auc": 0.1, "test_acc": 0.2}, {"step": 2, "test_auc": 0.99, "test_acc": 0.98}]] * 2
    added = {name: best - np.mean(reported[name]["per_seed"]) for name, best in (("auc", 0.99), ("acc", 0.98))}
    runs = tuple(dataclasses.replace(run, curve=curve) for run, curve in zip(study.runs, curves, strict=True))
    found = _analyse(dataclasses.replace(study, runs=runs))
    assert _arm(found, "a")["best_on_test_minus_reported"] == pytest.approx(added)
    # The record leaves epochs out: the reported one may be better than those that are left.
    runs = tuple(dataclasses.replace(run, curve=run.curve[:1]) for run in runs)
    found = _analyse(dataclasses.replace(study, runs=runs))
    assert _arm(found, "a")["best_on_test_minus_reported"] == {"auc": 0, "acc": 0}

"""Pairs of arms: differences with intervals, tests corrected for their number, and what is shown."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.errors import UserError
from jaxboost.statistics import crossed, paired, power
from jaxboost.statistics.intervals import score_interval
from jaxboost.statistics.multiplicity import holm
from jaxboost.statistics.pooling import pool
from jaxboost.statistics.resampled import RunsFigure
from jaxboost.studies.record import ComparisonRecord
from jaxboost.studies.scored import HeldOut, Scored

Json = dict[str, Any]
ALPHA = 0.05
SHOWN, NOT_SHOWN, OPPOSITE = "shown", "not shown", "opposite"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arms:
    """All arms with their figures.

    Attributes:
      test: the test split.
      scored: name -> arm.
      found: name -> figures of its runs; none for an arm without runs.
      seed: random seed of the resamples.
    """

    test: HeldOut
    scored: Mapping[str, Scored]
    found: Mapping[str, Mapping[str, RunsFigure]]
    seed: int

    def has(self, *names: str) -> bool:
        """Whether all these arms have runs."""
        return all(name in self.scored and self.scored[name].runs for name in names)


def comparisons(arms: Arms, of_study: Sequence[ComparisonRecord]) -> tuple[list[Json], list[str]]:
    """The study's comparisons, corrected as one family, and why McNemar's test is missing where it is."""
    rows, reasons = [], []
    for each in of_study:
        row, reason = _comparison(arms, each)
        rows.append(row)
        reasons += [reason] if reason else []
    _correct(rows)
    tests = [row["mcnemar"]["p"] for row in rows]
    for row, adjusted in zip(rows, _holm(tests), strict=True):
        row["mcnemar"]["p_holm"] = adjusted
    return rows, list(dict.fromkeys(reasons))


def ladder(arms: Arms) -> list[Json]:
    """Each rung of the ladder against all lower ones, corrected as one family; rungs without an AUC are left out.

    Arms of the same rung count in the order of the study.

    Returns:
      Rows like those of `comparisons`, where "arm" is the higher rung, without McNemar's test.
    """
    on_rungs = rungs(arms)
    rows = [
        {"arm": higher, "reference": lower, "metric": "auc"} | _auc_difference(arms, higher, lower)[0]
        for place, lower in enumerate(on_rungs)
        for higher in on_rungs[place + 1 :]
    ]
    _correct(rows)
    return rows


def rungs(arms: Arms) -> list[str]:
    """The names of the arms on the ladder that have an AUC, from the simplest."""
    known = [
        name
        for name, scored in arms.scored.items()
        if scored.arm.rung is not None and scored.runs and math.isfinite(arms.found[name]["auc"].resampled.mean)
    ]
    return sorted(known, key=lambda name: arms.scored[name].arm.rung or 0)


def _comparison(arms: Arms, each: ComparisonRecord) -> tuple[Json, str]:
    """A comparison without Holm's corrections, and why it has no McNemar's test."""
    row: Json = {"arm": each.arm, "reference": each.reference, "claim": each.claim, "main": each.main, "metric": "auc"}
    auc, se = _auc_difference(arms, each.arm, each.reference)
    row |= auc | {"acc_difference": None, "mcnemar": {"only_arm": None, "only_reference": None, "p": None}}
    row |= {"false_order": None, "detectable": {"auc": None, "acc": None}}
    row["missing"] = {name: _missing(arms, name) for name in (each.arm, each.reference) if not arms.has(name)}
    if not arms.has(each.arm, each.reference):
        return row, ""
    if se > 0:
        row["detectable"]["auc"] = power.smallest_auc_difference(se)
    accs = [arms.found[name]["acc"].resampled.mean for name in (each.arm, each.reference)]
    row["acc_difference"] = accs[0] - accs[1]
    right, reason = _right(arms.test, arms.scored[each.arm].mean, arms.scored[each.reference].mean)
    if right is not None:
        found = paired.mcnemar(*right)
        row["mcnemar"] = {"only_arm": found.only_a, "only_reference": found.only_b, "p": found.p}
        row["false_order"] = paired.false_order(found.only_a, found.only_b)
        discordance = (found.only_a + found.only_b) / found.n
        row["detectable"]["acc"] = power.smallest_acc_difference(found.n, discordance)
    return row, reason


def _missing(arms: Arms, name: str) -> str:
    return arms.scored[name].missing if name in arms.scored else "no arm of the study has this name"


def _auc_difference(arms: Arms, arm: str, reference: str) -> tuple[Json, float]:
    """What a row says about the AUCs, before Holm's correction, and the standard error of their difference."""
    names = ("difference", "low", "high", "method", "better", "p", "delong_difference", "delong_p")
    if not arms.has(arm, reference):
        return dict.fromkeys(names), math.nan
    test, a, b = arms.test, arms.scored[arm], arms.scored[reference]

    def interval_of(mean: float) -> tuple[float, float]:
        return score_interval(test.labels, test.task, "auc", mean, test.numbers)

    over_runs = crossed.compare_resampled(
        arms.found[arm]["auc"].resampled,
        arms.found[reference]["auc"].resampled,
        interval_of,
        paired_seeds=a.seeds == b.seeds,
        seed=arms.seed,
    )
    if not math.isfinite(over_runs.difference):
        return dict.fromkeys(names) | {"method": over_runs.method}, math.nan
    averaged = paired.auc_test(test.labels, a.mean, b.mean, test.task, groups=test.groups)
    # Where all resamples are the same, the test of the averaged probabilities stands for both.
    p = over_runs.p if math.isfinite(over_runs.p) else averaged.p
    values = (over_runs.difference, over_runs.low, over_runs.high, over_runs.method, over_runs.p_better, p)
    return dict(zip(names, (*values, averaged.difference, averaged.p), strict=True)), averaged.se


def _right(test: HeldOut, mean_a: np.ndarray, mean_b: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Whether the averaged decisions of two arms are right, bool (n,) or of each patient; or None and the reason."""
    if test.kind.multi_label:
        return None, "McNemar's test is not given: an image has several labels, so no single decision is right or wrong"
    labels, both = test.labels, [mean_a, mean_b]
    if test.several:
        try:
            pooled = [pool(labels, mean, test.patients, test.task) for mean in both]
        except UserError as error:
            reason = str(error).rpartition(": ")[0]
            return None, f"McNemar's test is not given: it needs one decision for each patient, and {reason}"
        labels, both = pooled[0].labels, [each.probabilities for each in pooled]
    right_a, right_b = ((test.kind.decide(mean) == labels)[:, 0] for mean in both)
    return (right_a, right_b), ""


def _correct(rows: Sequence[Json]) -> None:
    """Adds Holm's p values and what is shown."""
    for name in ("p", "delong_p"):
        for row, adjusted in zip(rows, _holm([row[name] for row in rows]), strict=True):
            row[f"{name}_holm"] = adjusted
    for row in rows:
        row["failed"] = failed(row)
        row["shown"] = _shown(row)


def _holm(p_values: Sequence[float | None]) -> list[float]:
    return holm([math.nan if p is None else p for p in p_values]).tolist() if p_values else []


def failed(row: Json) -> list[str] | None:
    """The names of the conditions of "shown" that a row does not fulfil; None without a difference.

    They are "interval" (it excludes 0, on the side of the difference), "p_holm" and "delong_p_holm" (each below .05; an
    undefined one is not), and "delong_difference" (it has the sign of the difference).
    """
    if row["difference"] is None:
        return None
    found = [] if (row["low"] > 0 if row["difference"] > 0 else row["high"] < 0) else ["interval"]
    found += [name for name in ("p_holm", "delong_p_holm") if not row[name] < ALPHA]
    return found + ([] if row["difference"] * row["delong_difference"] > 0 else ["delong_difference"])


def _shown(row: Json) -> str:
    """What a row shows: the interval excludes 0, both of Holm's p are below .05, and all are on one side."""
    if row["failed"] is None or row["failed"]:
        return NOT_SHOWN
    return SHOWN if row["low"] > 0 else OPPOSITE

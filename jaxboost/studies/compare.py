"""The analysis of a record: everything that a report says, as one JSON object.

Its entries:

- "study", "data", "left_out", "provenance", "limits": what was run, on what, and what it does not show.
- "verdict": the sentence, the place of the main comparison, the name of the simplest arm that nothing beats, reasons.
- "arms": of each arm the figures with intervals over patients (the seeds are fixed), validation, calibration, curves.
- "comparisons": the study's pairs, one family for Holm's correction. "difference", its interval and "p" are of the mean
  AUC over the seeds, with patients and seeds drawn; "better" is P(A > B) of two single runs; "delong_p" (with
  "delong_difference"), "mcnemar" and "false_order" are of the probabilities averaged over the seeds. A difference is
  "shown" if its interval is above 0, Holm's p of both tests ("p_holm", "delong_p_holm") is below .05, and
  "delong_difference" is above 0 too; "failed" names the conditions that do not hold, see `pairs.failed`. DeLong's test
  alone knows nothing of the spread over seeds, and the interval alone nothing of other comparisons. "missing" names the
  arms without a run, and why.
- "ladder": each rung against all lower ones, a family of its own. The simplest arm that nothing beats is the lowest
  rung against which no other one is "shown".
- "learning_curve", "subgroups", "published": where they are known.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxboost.studies import limits, pairs, provenance, published, scored, verdict
from jaxboost.studies.arms import entry, figures_of, learning_curve, subgroups
from jaxboost.studies.record import Record

FORMAT = 1


def analyse(record: Record, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Analyses a record.

    A figure is undefined where the test split lacks a class that it needs, or an arm has no run; then it is None.
    Runs whose scores cannot be used are left out, and "left_out" says why. The same record gives the same analysis.

    Args:
      record: the record of a study or of other runs.
      resamples: number of bootstrap resamples.
      seed: random seed of the resamples.

    Returns:
      What `json.loads` can return, without NaN.
    """
    test, by_name, left_out = scored.of_record(record)
    members = record.items.get("val")
    val_labels = members.labels if members is not None and len(members.labels) else None
    options = {"resamples": resamples, "seed": seed}
    found = {name: figures_of(arm, test, **options) for name, arm in by_name.items()}
    entries = [entry(arm, test, val_labels, found[name]) for name, arm in by_name.items()]
    entries = [_plain(each) for each in entries]
    all_arms = pairs.Arms(test=test, scored=by_name, found=found, seed=seed)
    comparisons, without_mcnemar = pairs.comparisons(all_arms, record.comparisons)
    ladder = pairs.ladder(all_arms)
    said = verdict.verdict(record, all_arms, entries, comparisons, ladder)
    return _plain(
        {
            "format": FORMAT,
            "study": {name: getattr(record, name) for name in ("name", "question", "expected", "quick", "protocol")},
            "verdict": said,
            "data": record.data,
            "arms": entries,
            "comparisons": comparisons,
            "ladder": ladder,
            "learning_curve": learning_curve(by_name.values(), entries),
            "subgroups": [
                row
                for name in _of_interest(record, all_arms, entries, said, comparisons)
                for row in subgroups(by_name[name], test, **options)
            ],
            "left_out": [{"what": each.what, "why": each.why} for each in left_out],
            "published": published.of_study(record),
            "provenance": provenance.provenance(record, by_name),
            "claim": [],
            "limits": limits.limits(record, all_arms, entries, comparisons, without_mcnemar),
        }
    )


def _of_interest(
    record: Record, arms: pairs.Arms, entries: list[dict], said: Mapping[str, Any], comparisons: list[dict]
) -> list[str]:
    """The arms of the main comparison; without one the arm that the verdict names."""
    if said["main"] is not None:
        row = comparisons[said["main"]]
        return [name for name in (row["arm"], row["reference"]) if arms.has(name)]
    best = said["simplest"] or verdict.best_arm(record, arms, {each["name"]: each for each in entries})
    return [best] if best else []


def _plain(value: Any) -> Any:
    """The value as JSON has it: no numpy, no tuples, and None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

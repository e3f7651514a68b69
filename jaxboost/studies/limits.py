"""What a study does not show, in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.evaluation.patients import PATIENT
from jaxboost.studies import pairs, verdict
from jaxboost.studies.record import Record
from jaxboost.studies.scored import HeldOut

Json = dict[str, Any]
# The least number of seeds, and of patients of a class, without a remark.
_SEEDS, _PATIENTS = 5, 30
_SITES = ("site", "hospital", "center", "centre", "institution", "scanner")


def limits(
    record: Record, arms: pairs.Arms, entries: Sequence[Json], comparisons: Sequence[Json], mcnemar: Sequence[str]
) -> list[str]:
    """The limits of a study.

    Args:
      record: the record.
      arms: all arms.
      entries: the entry of each arm.
      comparisons: the row of each comparison.
      mcnemar: why McNemar's test is missing.
    """
    test = arms.test
    found = []
    if why := verdict.why_undefined(test):
        found.append(
            f"{why[0].upper()}{why[1:]}. An AUC needs all classes: it is undefined, and so are its comparisons."
        )
    if len(test.labels):
        found += _of_sample(test)
        found += _of_patients(record, test)
    found += _of_runs(record, arms, entries)
    found += _of_comparisons(comparisons, {entry["name"]: entry["title"] for entry in entries})
    found += [f"{reason}." for reason in mcnemar]
    if not test.kind.binary:
        found.append(
            "The AUC is the mean over the classes or labels. Where tables name DeLong's test, its standard"
            " error is that of the jackknife over patients, because DeLong's is for a single one."
        )
    if record.protocol == "validation" and not any(entry["best_on_test_minus_reported"] for entry in entries):
        found.append(
            "What picking the epoch on the test split would add is not known: the test split was read once, at the end"
            " of each run."
        )
    return found + _of_data(record, test)


def _of_sample(test: HeldOut) -> list[str]:
    counts = _patients_of_classes(test)
    least = min(counts, key=lambda name: counts[name])
    images, patients = len(test.labels), int(test.numbers.max()) + 1
    whom = f"{images} samples of {patients} patients" if test.several else f"{images} samples"
    unit = "patients" if test.several else "samples"
    text = f"The test split has {whom}; the rarest class, {least!r}, has {counts[least]} {unit}."
    if counts[least] < _PATIENTS:
        text += " With so few, intervals and tests are rough, and only large differences can be shown."
    return [text]


def _patients_of_classes(test: HeldOut) -> dict[str, int]:
    """Class -> number of patients that have an item of it."""
    labels = test.labels
    members = labels == 1 if test.kind.multi_label else labels == np.arange(len(test.classes))
    return {name: len(np.unique(test.numbers[inside])) for name, inside in zip(test.classes, members.T, strict=True)}


def _of_patients(record: Record, test: HeldOut) -> list[str]:
    if np.array_equal(test.patients, record.items["test"].names):
        return [
            "Patients are not known: each sample counts as a patient. If a patient has several, the intervals are too"
            " narrow, and the splits may share patients."
        ]
    found = []
    if record.data.get("unit") == PATIENT:
        found.append("A sample is a patient: the probabilities of a patient's images were averaged.")
    # In a cross-validation, a patient is in the test split of one fold and in the validation split of another.
    if "val" in record.items and not _has_folds(record):
        shared = np.intersect1d(record.items["val"].patients, test.patients)
        found += [f"{shared.size} patients are in the validation and in the test split."] if shared.size else []
    return found


def _has_folds(record: Record) -> bool:
    """Whether runs are cross-validations."""
    return any(run.result.get("folds") for run in record.runs)


def _of_runs(record: Record, arms: pairs.Arms, entries: Sequence[Json]) -> list[str]:
    found = []
    if record.protocol == "reference":
        found.append(
            "Reference protocol: the test split picked the epochs, so all figures are too high. Compare them only"
            " with figures that were found in the same way."
        )
    if record.quick:
        found.append("This is a trial with few epochs: it shows that everything works, and nothing else.")
    trained = [scored for scored in arms.scored.values() if scored.runs and scored.random]
    seeds = [len(scored.runs) for scored in trained]
    if seeds and min(seeds) < _SEEDS:
        text = "one seed" if max(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
        text = f"{min(seeds)} seeds" if min(seeds) == max(seeds) > 1 else text
        found.append(f"The trained arms have {text}; with fewer than {_SEEDS} the spread over seeds is hardly known.")
    once = [scored.arm.title for scored in arms.scored.values() if len(scored.runs) == 1 and not scored.random]
    if once:
        found.append(f"Fitted once, so without a spread over seeds: {'; '.join(once)}.")
    if any(entry["learning_rates"] for entry in entries):
        found.append("Learning rates were chosen on validation, with the first seed of each arm.")
    for why, titles in verdict.missing_arms(entries).items():
        found.append(f"Without a finished run ({why}): {'; '.join(titles)}.")
    if _has_folds(record):
        found.append(
            "Cross-validation: the test samples of all folds are taken as one split, although each fold has a model of"
            " its own. Where the folds' models differ in the level of their probabilities, this AUC is not the mean of"
            " the folds' AUCs; and intervals do not know that the folds share training samples."
        )
    return found


def _of_comparisons(comparisons: Sequence[Json], titles: Mapping[str, str]) -> list[str]:
    """Comparisons that a study asks for and that have no result."""
    missing = [
        " minus ".join(titles.get(row[end], row[end]) for end in ("arm", "reference"))
        for row in comparisons
        if row["missing"]
    ]
    if not missing:
        return []
    text = f"Not compared, as runs are missing: {'; '.join(missing)}."
    if len(missing) < len(comparisons):
        text += " With them, Holm's p of the other comparisons may be larger."
    return [text]


def _of_data(record: Record, test: HeldOut) -> list[str]:
    found = []
    sites = [name for name in test.columns if name.lower() in _SITES and len(np.unique(test.columns[name])) > 1]
    if not sites:
        found.append("No second site: how the arms do with images of another hospital or scanner is not known.")
    found += of_columns(record)
    found += _of_duplicates(record.data)
    if not _has_folds(record):
        found.append("One split of the data was used: another split would give other figures.")
    return found


def of_columns(record: Record) -> list[str]:
    """Clinical columns that tell the class without an image."""
    columns = [column for run in record.runs for column in run.result.get("columns") or ()]
    names = dict.fromkeys(column["name"] for column in columns if column.get("separates"))
    return [
        f"The clinical column {name!r} alone separates the classes of a training split: figures mean something only if"
        " it is known before the diagnosis and does not follow from it."
        for name in names
    ]


def _of_duplicates(data: Mapping[str, Any]) -> list[str]:
    """Words about entries such as "duplicates" or "near_duplicates": numbers, or a text that begins with one."""
    entries = {name: value for name, value in data.items() if name.endswith("duplicates")}
    found = [name for name, value in entries.items() if _any(value)]
    if found:
        words = " and ".join(name.replace("_", "-") for name in found)
        return [f"The data set has {words}: where they are in several splits, figures are too high."]
    return [] if entries else ["Duplicates across the splits were not looked for."]


def _any(value: Any) -> bool:
    """Whether an entry about duplicates counts any."""
    if isinstance(value, Mapping):
        return any(map(_any, value.values()))
    return not value.startswith("0 ") if isinstance(value, str) and value else bool(value)

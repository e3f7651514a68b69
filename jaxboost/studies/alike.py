"""Which runs were scored on the same samples, so that they can be compared."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.studies.finished_run import REFERENCE, FinishedRun


def foreign(runs: Sequence[FinishedRun]) -> list[str]:
    """Why the scores of each run cannot be compared with those of the others; "" if they can.

    The largest group of runs on the same samples belongs together; of equally large ones the first. Runs of the
    protocol `reference` do only if there are no others.

    Args:
      runs: one or more.
    """
    sound = [run for run in runs if run.result["protocol"] != REFERENCE] or runs
    sizes = Counter(map(_group, sound))
    largest = max(sizes, key=lambda group: sizes[group])
    alike = [run for run in sound if _group(run) == largest]
    # Runs of a part of the data do not know the content of the whole.
    digests = Counter(digest for run in alike if (digest := _data_digest(run)))
    content = max(digests, key=lambda digest: digests[digest], default=None)
    # Arms may read other columns than others; the same columns have the same content.
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for run in alike:
        names, digest = _columns(run)
        counts[names].update([digest] if digest else [])
    cells = {names: max(found, key=lambda digest: found[digest]) for names, found in counts.items() if found}
    return [_foreign(run, alike[0], content, cells) for run in runs]


def _group(run: FinishedRun) -> tuple[Any, ...]:
    """Equal for runs whose scores can be compared."""
    content, digest = run.result, hashlib.sha256()
    for split in sorted(run.items):
        items = run.items[split]
        digest.update("\n".join([split, *items.names, *items.patients]).encode())
        digest.update(items.labels.tobytes())
    about = (content["protocol"], content["dataset"], content["task"], *content["classes"], run.per_patient)
    return (*about, digest.hexdigest())


def _data_digest(run: FinishedRun) -> str | None:
    """The fingerprint of a user's own data; None where a run has only a part of them."""
    is_whole = run.result["config"].get("data", {}).get("train_fraction", 1) == 1
    return run.result.get("data_sha256") if is_whole else None


def _columns(run: FinishedRun) -> tuple[tuple[str, ...], str | None]:
    """The names of a run's clinical columns, and the fingerprint of their cells; None as for `_data_digest`."""
    names = tuple(map(str, run.result["config"].get("data", {}).get("columns", ())))
    return names, run.result.get("columns_sha256") if _data_digest(run) else None


def _foreign(run: FinishedRun, model: FinishedRun, content: str | None, cells: Mapping[tuple[str, ...], str]) -> str:
    """Why the scores of a run cannot be compared with those of `model`; "" if they can.

    Args:
      run: the run.
      model: a run that is taken.
      content: the fingerprint of the data, see `_data_digest`.
      cells: names of clinical columns -> the fingerprint of their cells.
    """
    ours, theirs = run.result, model.result
    if ours["protocol"] != theirs["protocol"]:
        return "its epoch was picked on the test split (protocol reference): it is never mixed with sound results"
    if ours["dataset"] != theirs["dataset"]:
        return f"it is of another data set: {ours['dataset']}, not {theirs['dataset']}"
    if (ours["task"], ours["classes"]) != (theirs["task"], theirs["classes"]):
        return "it has another task or other classes"
    if run.per_patient != model.per_patient:
        kinds = [{True: "patients", False: "images"}[each.per_patient] for each in (run, model)]
        return f"its figures are of {kinds[0]}, and those of the others of {kinds[1]} (eval.unit)"
    for split, items in model.items.items():
        found = run.items[split]
        if len(found.names) != len(items.names):
            return f"it has other splits: {len(found.names)} {split} samples, not {len(items.names)}"
        if (found.names != items.names).any():
            return f"it has other splits: other {split} samples, or in another order"
        if (found.labels != items.labels).any():
            count = int((found.labels != items.labels).any(1).sum())
            return f"it has other labels: those of {count} {split} samples"
        if (found.patients != items.patients).any():
            return f"it has other patients in its {split} split"
    if _data_digest(run) not in (None, content):
        return "its data have other content: the images changed between the runs"
    names, digest = _columns(run)
    if digest is not None and digest != cells.get(names, digest):
        return "its clinical columns have other content: the table changed between the runs"
    return ""

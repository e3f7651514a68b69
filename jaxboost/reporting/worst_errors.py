"""The worst errors of a study's main arm, as pictures for its report."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.reporting import choice, numbers
from jaxboost.reporting.blocks import Picture
from jaxboost.studies.record import Record, RunRecord
from jaxboost.tasks import TASKS

if TYPE_CHECKING:
    from jaxboost.explain import for_report


def find(
    folder: pathlib.Path, analysis: Mapping[str, Any], record: Record, most: int
) -> tuple[list[Picture], list[dict[str, str]]]:
    """Pictures of the worst errors of one run: of the main comparison's first arm, else of the uppermost trained one.

    Args:
      folder: where the runs are, at any depth.
      analysis, record: what the report is made from.
      most: the most pictures; 0 for none.

    Returns:
      The pictures, and entries for "left_out" where there can be none, such as without the data or the weights.
    """
    if not most:
        return [], []
    # It imports jax.
    from jaxboost.explain import for_report

    reasons = []
    for name in _arms(analysis):
        runs = record.runs_of(name)
        run = _folder(folder, runs[0]) if runs else None
        if run is None:
            continue
        beside = _beside(analysis, record, name, runs[0].seed)
        other = _folder(folder, beside) if beside else None
        # Maps of both on the same images, or of the first alone where the second cannot be opened.
        for against in (other, None) if other else (None,):
            try:
                found = for_report.worst_errors(run, most=most, against=against)
            except UserError as error:
                reasons.append({"what": f"pictures of the errors of {name}", "why": str(error)})
                continue
            pictured = [runs[0], *([beside] if against and beside else [])]
            named = choice.titles(analysis)
            shown = [f"{named.get(each.arm, each.arm)}, seed {each.seed}" for each in pictured]
            return [_captioned(each, shown, beside, analysis, record) for each in found], []
    return [], reasons[:1]


def _beside(analysis: Mapping[str, Any], record: Record, name: str, seed: int) -> RunRecord | None:
    """The run that the main comparison compares with: of the same seed, else the other arm's first."""
    main = choice.main_comparison(analysis) or {}
    pair = [main.get("arm"), main.get("reference")]
    if name not in pair:
        return None
    runs = record.runs_of(str(pair[1 - pair.index(name)]))
    return next((run for run in runs if run.seed == seed), runs[0] if runs else None)


def _captioned(
    found: "for_report.Picture",
    shown: Sequence[str],
    beside: RunRecord | None,
    analysis: Mapping[str, Any],
    record: Record,
) -> Picture:
    """The picture with the arms' names in its caption, and with the other arm's score for the same image.

    Args:
      found: the picture.
      shown: arm and seed of each run that it shows.
      beside: the run to compare with; None for none.
      analysis, record: what the report is made from.
    """
    lines = [f"{found.name}, label {found.label}" if found.label else found.name]
    lines += [f"{who}: {finding}" for who, finding in zip(shown, found.findings, strict=True)]
    # Where the images of a patient were pooled, the record has no score of an image.
    if beside is not None and record.data.get("unit") != "patient":
        title = choice.titles(analysis).get(beside.arm, beside.arm)
        score = _score(found, record.scores.get((beside.arm, beside.seed, "test")), record)
        lines.append(f"{title}, seed {beside.seed}, on this image: {score}")
    return Picture(kind=found.kind, caption="\n".join(lines), png=found.png)


def _score(found: "for_report.Picture", scores: np.ndarray | None, record: Record) -> str:
    """The probabilities of the class that the pictured run predicts and of the true ones."""
    items = record.items.get("test")
    rows = np.flatnonzero(items.names == found.name) if items is not None else ()
    if items is None or scores is None or len(rows) != 1 or scores.shape != (len(items.names), len(record.classes)):
        return numbers.NOT_KNOWN
    label, values = items.labels[rows[0]], scores[rows[0]]
    true = np.flatnonzero(label) if TASKS[record.task].multi_label else label
    shown = dict.fromkeys([found.target, *true.tolist()])
    return ", ".join(f"{record.classes[number]} {values[number]:.2f}" for number in shown)


def _arms(analysis: Mapping[str, Any]) -> list[str]:
    """The arms to try, the wanted one first; prevalence and others without a network cannot be opened."""
    main = choice.main_comparison(analysis) or {}
    ladder = [arm["name"] for arm in reversed(choice.by_group(analysis, "ladder"))]
    return [name for name in dict.fromkeys([main.get("arm"), main.get("reference"), *ladder]) if name]


def _folder(folder: pathlib.Path, run: RunRecord) -> pathlib.Path | None:
    """The folder of a run, which is known by the content of its result.json; None if it is not there."""
    wanted = _digest(run.result)
    for path in sorted(folder.rglob("result.json")):
        try:
            content = io.read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and _digest(content) == wanted:
            return path.parent
    return None


def _digest(result: Mapping[str, Any]) -> str:
    """The digest of a result, without the checksum that only the file has."""
    return io.json_sha256({name: entry for name, entry in result.items() if name != "sha256"})

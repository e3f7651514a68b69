"""The worst errors of a study's main arm, as pictures for its report."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.reporting import choice
from jaxboost.reporting.blocks import Picture
from jaxboost.studies.record import Record


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
        run = _folder(folder, record, name)
        if run is None:
            continue
        try:
            return for_report.worst_errors(run, most=most), []
        except UserError as error:
            reasons.append({"what": f"pictures of the errors of {name}", "why": str(error)})
    return [], reasons[:1]


def _arms(analysis: Mapping[str, Any]) -> list[str]:
    """The arms to try, the wanted one first; prevalence and others without a network cannot be opened."""
    main = choice.main_comparison(analysis) or {}
    ladder = [arm["name"] for arm in reversed(choice.by_group(analysis, "ladder"))]
    return [name for name in dict.fromkeys([main.get("arm"), main.get("reference"), *ladder]) if name]


def _folder(folder: pathlib.Path, record: Record, arm: str) -> pathlib.Path | None:
    """The folder of an arm's first run, which is known by the content of its result.json; None if it is not there."""
    runs = record.runs_of(arm)
    if not runs:
        return None
    wanted = _digest(runs[0].result)
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

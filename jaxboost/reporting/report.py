"""Writes a report: one page, its figures as JSON, CSV and LaTeX, and a model card."""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.reporting import claim, model_card, page
from jaxboost.reporting.blocks import Picture
from jaxboost.reporting.sections import arms, background, diagnostics, results
from jaxboost.studies.record import Record


def write_report(
    analysis: Mapping[str, Any],
    record: Record,
    folder: str | os.PathLike[str],
    *,
    name: str = "report",
    pictures: Sequence[Picture] = (),
) -> pathlib.Path:
    """Writes NAME.html, NAME.json, the tables and the model card to a folder; all of them or none.

    The same input gives the same bytes. Files of an earlier report are replaced.

    Args:
      analysis: what `studies.compare.analyse` returns.
      record: the record that was analysed.
      folder: where the files go; it is made where it is missing.
      name: of the page and the JSON file. Tables and card have it in their names too, unless it is "report".
      pictures: of errors, and of where the model looks.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder cannot be written, or has a page of this name that is no report.
    """
    folder = pathlib.Path(folder).expanduser()
    html = folder / f"{name}.html"
    _check(folder, html)
    files = contents(analysis, record, name, pictures)
    with io.writing(f"the report in {folder}", then=lambda: "; no file was replaced"), contextlib.ExitStack() as stack:
        # All are written under temporary names before the first gets its own; the page is renamed last.
        for path in reversed(files):
            temporary = stack.enter_context(io.replacing(folder / path))
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
    return html


def contents(
    analysis: Mapping[str, Any], record: Record, name: str = "report", pictures: Sequence[Picture] = ()
) -> dict[str, str]:
    """The files of a report: path below its folder -> text, the page last; arguments as for `write_report`."""
    if not analysis.get("claim"):
        analysis = {**analysis, "claim": claim.checklist(analysis, record, {picture.kind for picture in pictures})}
    prefix = "" if name == "report" else f"{name}_"
    tables = (arms.ladder(analysis), arms.controls(analysis), arms.sweeps(analysis), arms.comparisons(analysis))
    files = {}
    for table in tables:
        if table.rows:
            files[f"tables/{prefix}{table.name}.csv"] = table.to_csv()
            files[f"tables/{prefix}{table.name}.tex"] = table.to_latex()
    card = model_card.text(analysis, record)
    if card is not None:
        files[f"{prefix}model_card.md"] = card
    files[f"{name}.json"] = io.to_json(analysis, indent=1) + "\n"
    sections = [
        *results.sections(analysis, record),
        *diagnostics.sections(analysis, record, pictures),
        *background.sections(analysis),
    ]
    files[f"{name}.html"] = page.render(analysis, record, sections)
    return {path: text.encode("utf-8", "backslashreplace").decode() for path, text in files.items()}


def _check(folder: pathlib.Path, html: pathlib.Path) -> None:
    """Raises UserError where the report would replace something else."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give another one for the report")
    if not os.path.lexists(html):
        return
    try:
        with html.open(encoding="utf-8", errors="replace") as file:
            ours = page.GENERATOR in file.read(1000)
    except OSError:
        ours = False
    if not ours:
        raise UserError(f"{html} already exists and is no report of jaxboost: give another folder")

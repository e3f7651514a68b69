"""Writes a report: one page, its figures as JSON, its tables as CSV, LaTeX and Markdown, plots, and a model card."""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.reporting import claim, model_card, page, worst_errors
from jaxboost.reporting.blocks import Picture
from jaxboost.reporting.plots import canvas
from jaxboost.reporting.sections import arms, background, comparisons, diagnostics, results
from jaxboost.studies.record import Record


def write_with_pictures(
    runs: pathlib.Path, analysis: Mapping[str, Any], record: Record, folder: pathlib.Path, *, pictures: int = 12
) -> pathlib.Path:
    """Writes a report as `write_report` does, with pictures of the worst errors; returns the path of the page.

    Args:
      runs: folder of the runs, see `worst_errors.find`. Where a picture is not possible, the report says why.
      analysis, record, folder: see `write_report`.
      pictures: the most pictures; 0: none.
    """
    found, left_out = worst_errors.find(runs, analysis, record, pictures)
    analysis = {**analysis, "left_out": [*analysis["left_out"], *left_out]}
    return write_report(analysis, record, folder, pictures=found)


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
      pictures: of errors, and of where the model looks; see `explain.for_report`, whose pictures have the same fields.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder cannot be written, or has a page of this name that is no report.
    """
    folder = io.user_path(folder)
    replaces = check_out(folder, name)
    files = contents(analysis, record, name, pictures)
    for path in files:
        if (folder / path).is_dir():
            raise UserError(f"{folder / path} is a folder, where the report has a file: give another folder")
    with io.writing(f"the report in {folder}", then=lambda: "; no file was replaced"), contextlib.ExitStack() as stack:
        # All are written under temporary names before the first gets its own; the page is renamed last.
        for path in reversed(files):
            temporary = stack.enter_context(io.replacing(folder / path))
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
    if replaces:
        # Files of the earlier report that this one does not have, such as a table of controls.
        for path in _possible(name) - set(files):
            (folder / path).unlink(missing_ok=True)
    return folder / f"{name}.html"


def check_out(folder: pathlib.Path, name: str = "report") -> bool:
    """Whether a folder has an earlier report of this name.

    Raises:
      UserError: it is no folder, or has a page of this name that is no report.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give another one for the report")
    page_file = folder / f"{name}.html"
    if not os.path.lexists(page_file):
        return False
    ours = False
    with contextlib.suppress(OSError), page_file.open(encoding="utf-8", errors="replace") as file:
        ours = page.GENERATOR in file.read(1000)
    if not ours:
        raise UserError(f"{page_file} already exists and is no report of jaxboost: give another folder")
    return True


def _possible(name: str) -> set[str]:
    """All files besides the page and the JSON file that a report may have."""
    prefix = _prefix(name)
    tables = ("ladder", "controls", "sweeps", "comparisons", "rungs")
    found = {f"tables/{prefix}{table}.{kind}" for table in tables for kind in ("csv", "tex", "md")}
    return found | {f"plots/{prefix}{plot}.svg" for plot in ("scores", "forest")} | {f"{prefix}model_card.md"}


def _prefix(name: str) -> str:
    return "" if name == "report" else f"{name}_"


def contents(
    analysis: Mapping[str, Any], record: Record, name: str = "report", pictures: Sequence[Picture] = ()
) -> dict[str, str]:
    """The files of a report: path below its folder -> text, the page last; arguments as for `write_report`."""
    if not analysis.get("claim"):
        analysis = {**analysis, "claim": claim.checklist(analysis, record, {picture.kind for picture in pictures})}
    prefix = _prefix(name)
    tables = (arms.ladder(analysis), arms.controls(analysis), arms.sweeps(analysis))
    tables += (comparisons.comparisons(analysis), comparisons.rungs(analysis))
    files = {}
    for table in tables:
        if table.rows:
            files[f"tables/{prefix}{table.name}.csv"] = table.to_csv()
            files[f"tables/{prefix}{table.name}.tex"] = table.to_latex()
            files[f"tables/{prefix}{table.name}.md"] = table.to_markdown()
    drawn = results.plots(analysis)
    for plot_name, plot in drawn.items():
        files[f"plots/{prefix}{plot_name}.svg"] = canvas.to_file(plot.svg, page.style())
    card = model_card.text(analysis, record)
    if card is not None:
        files[f"{prefix}model_card.md"] = card
    files[f"{name}.json"] = io.to_json(analysis, indent=1) + "\n"
    sections = [
        *results.sections(analysis, record, drawn),
        *diagnostics.sections(analysis, record, pictures),
        *background.sections(analysis),
    ]
    files[f"{name}.html"] = page.render(analysis, record, sections)
    return {path: text.encode("utf-8", "backslashreplace").decode() for path, text in files.items()}

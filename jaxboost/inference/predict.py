"""Predicts files with a finished run or an export: the work of `jaxboost predict`."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxboost import io, outputs
from jaxboost.data.sources.folder import input_columns, inputs
from jaxboost.errors import UserError
from jaxboost.inference import exported

logger = logging.getLogger(__name__)


def predict(
    folder: pathlib.Path,
    *,
    files: Sequence[str],
    out: pathlib.Path,
    masks: str = "",
    table: str = "",
    skip_faulty: bool = False,
    batch_size: int = 0,
    moved: Sequence[str] = (),
) -> None:
    """Predicts files with a run or an export. Mistakes are reported before anything is computed.

    Args:
      folder: folder of a run or an export.
      files: files and folders to predict, see `inputs.find`.
      out: CSV file for the predictions. An older table of predictions is replaced; any other file is not. If the run
        (of the export) counts patients (`eval.unit`), their predictions are written beside it, see `patient_table`.
      masks: lung masks, see `inputs.read`.
      table: CSV file with the clinical columns of the files, see `input_columns.find`.
      skip_faulty: leave out files that cannot be read, with a warning.
      batch_size: see `open_run.FinishedRun.predict`.
      moved: see `open_run.open_run`.

    Raises:
      UserError: a mistake in the arguments, or in the files that they name.
    """
    is_export = exported.is_export(folder)
    if is_export:
        exported.check_not_moved(folder, moved)
    _check_out(out)
    if is_export:
        model = exported.load(folder)
    else:
        # Imported here, because an export needs neither models nor training.
        from jaxboost.inference import open_run

        model = open_run.open_run(folder, moved)
    by_patient = model.unit == "patient"
    if by_patient:
        _check_out(patient_table(out))
    found = inputs.find(files, model.preprocessing.ndim, skip_faulty=skip_faulty)
    outputs.check_not_among(out, "--out", found, "one of the inputs")
    kept, images, columns = read(model, files, found, masks=masks, table=table, skip_faulty=skip_faulty)
    probabilities = model.predict(images, columns=columns, batch_size=batch_size)
    with io.writing(f"--out {out}"):
        io.write_text(out, model.labels.table(kept, probabilities))
    logger.info("%d predictions in %s", len(kept), out)
    if by_patient:
        from jaxboost.data.sources.folder import input_patients

        owners = input_patients.find(files, kept, model.labels.classes)
        with io.writing(patient_table(out)):
            io.write_text(patient_table(out), model.labels.patient_table(owners, probabilities))
        logger.info("%d patients in %s", len(set(owners)), patient_table(out))


def read(
    model: Any, files: Sequence[str], found: Sequence[pathlib.Path], *, masks: str, table: str, skip_faulty: bool
) -> tuple[list[pathlib.Path], np.ndarray, dict[str, np.ndarray] | None]:
    """Reads files and their clinical columns.

    Args:
      model: a run or an export.
      files: what is asked for.
      found: the files in it, see `inputs.find`.
      masks, table, skip_faulty: see `predict`.

    Returns:
      The files that could be read, their images, see `inputs.read`, and their columns, see `columns_of`.

    Raises:
      UserError: a mistake in the arguments, or in the files that they name.
    """
    # Before the images are read, which may take long.
    columns = columns_of(model, files, found, table)
    kept, images = inputs.read(found, model.preprocessing, masks=masks, skip_faulty=skip_faulty)
    place_of = {path: number for number, path in enumerate(found)}
    rows = [place_of[path] for path in kept]
    return kept, images, None if columns is None else {name: cells[rows] for name, cells in columns.items()}


def columns_of(
    model: Any, files: Sequence[str], kept: Sequence[pathlib.Path], table: str = ""
) -> dict[str, np.ndarray] | None:
    """The clinical columns of files, name -> cells (n,); None if the model reads none.

    Args:
      model: a run or an export.
      files, kept, table: see `input_columns.find`.

    Raises:
      UserError: see there; or a table is given, and the model reads none.
    """
    if not model.columns:
        if table:
            raise UserError(f"{input_columns.FLAG} {table}: the model reads no clinical columns: leave it out")
        return None
    names = [column.name for column in model.columns]
    cells = input_columns.find(
        files, kept, names, lambda number, cell: model.columns[number].problem(cell), table=table
    )
    return dict(zip(names, cells.T, strict=True))


def patient_table(out: pathlib.Path) -> pathlib.Path:
    """The file of the patients' predictions beside that of the images: predictions_patients.csv."""
    return out.with_name(f"{out.stem}_patients{out.suffix}")


def _check_out(out: pathlib.Path) -> None:
    """Raises UserError if the table cannot be written to `out`, or would replace another kind of file."""
    from jaxboost.data.sources.folder.layouts import SUFFIXES, suffix_of
    from jaxboost.evaluation import prediction_table

    outputs.check_file(out, "--out", kind="a table of predictions, in CSV", is_ours=prediction_table.is_table)
    if any(suffix_of(out.name) in suffixes for suffixes in SUFFIXES.values()):
        raise UserError(f"--out {out}: this is the name of an image file: give a name that ends with .csv")

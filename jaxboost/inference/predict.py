"""Predicts with a finished run or exports it: the work of `jaxboost predict` and `jaxboost export`."""

import logging
import pathlib
from collections.abc import Sequence

from jaxboost import io
from jaxboost.errors import UserError

logger = logging.getLogger("jaxboost.predict")


def predict_or_export(
    folder: pathlib.Path,
    *,
    files: Sequence[str] = (),
    out: pathlib.Path,
    target: pathlib.Path | None = None,
    masks: str = "",
    skip_faulty: bool = False,
    batch_size: int = 0,
    moved: Sequence[str] = (),
) -> None:
    """Predicts files with a run or an export, or exports a run. Mistakes are reported before anything is computed.

    Args:
      folder: folder of a run or an export.
      files: files and folders to predict, see `inputs.find`; empty: only export.
      out: CSV file for the predictions. An older table of predictions is replaced; any other file is not. If the run
        counts patients (`eval.unit`), their predictions are written beside it, see `patient_table`.
      target: the new folder of the export; None: do not export.
      masks: lung masks, see `inputs.read`.
      skip_faulty: leave out files that cannot be read, with a warning.
      batch_size: see `open_run.FinishedRun.predict`.
      moved: see `open_run.open_run`.

    Raises:
      UserError: a mistake in the arguments, or in the files that they name.
    """
    if not (files or target):
        raise UserError("nothing to do: give --input (images to predict) or --export (a new folder for the model)")
    # Imported here, because a mistyped flag should not wait for jax to load.
    from jaxboost import outputs
    from jaxboost.data.sources.folder import input_patients, inputs
    from jaxboost.inference import exported

    is_export = exported.is_export(folder)
    if is_export and target:
        raise UserError(f"--run {folder} is an export already: give the folder of a run to export")
    if is_export and moved:
        raise UserError(f"--run {folder} is an export, which contains its weights: leave --set out")
    if files:
        _check_out(out)
    run = None
    if not is_export:
        from jaxboost.inference import export, open_run

        if target:
            export.check_target(target)
            if outputs.is_inside(target, folder):
                raise UserError(f"the export {target} would lie in the run that is exported: give a folder elsewhere")
        run = open_run.open_run(folder, moved)
    model = exported.load(folder) if run is None else run
    by_patient = run is not None and run.config.eval.unit == "patient"
    if files and by_patient:
        _check_out(patient_table(out))
    found = inputs.find(files, model.preprocessing.ndim, skip_faulty=skip_faulty) if files else []
    outputs.check_not_among(out, "--out", found, "one of the inputs")
    if target and run is not None:
        from jaxboost.inference import export

        export.export(run, target)
    if found:
        kept, images = inputs.read(found, model.preprocessing, masks=masks, skip_faulty=skip_faulty)
        probabilities = model.predict(images, batch_size=batch_size)
        with io.writing(f"--out {out}"):
            io.write_text(out, model.labels.table(kept, probabilities))
        logger.info("%d predictions in %s", len(kept), out)
        if by_patient:
            owners = input_patients.find(files, kept, model.labels.classes)
            with io.writing(patient_table(out)):
                io.write_text(patient_table(out), model.labels.patient_table(owners, probabilities))
            logger.info("%d patients in %s", len(set(owners)), patient_table(out))


def patient_table(out: pathlib.Path) -> pathlib.Path:
    """The file of the patients' predictions beside that of the images: predictions_patients.csv."""
    return out.with_name(f"{out.stem}_patients{out.suffix}")


def _check_out(out: pathlib.Path) -> None:
    """Raises UserError if the table cannot be written to `out`, or would replace another kind of file."""
    from jaxboost import outputs
    from jaxboost.data.sources.folder.layouts import SUFFIXES, suffix_of
    from jaxboost.evaluation import prediction_table

    outputs.check_file(out, "--out", kind="a table of predictions, in CSV", is_ours=prediction_table.is_table)
    if any(suffix_of(out.name) in suffixes for suffixes in SUFFIXES.values()):
        raise UserError(f"--out {out}: this is the name of an image file: give a name that ends with .csv")

"""Predicts images with a finished run or an export.

jaxboost predict --run RUN --input FILES|FOLDER [--out predictions.csv]

RUN is the folder of a run, of one fold of a cross-validation, or of an export.
"""

import pathlib

from absl import flags

from jaxboost import io
from jaxboost.cli import app
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost predict`."""
    run_flag = flags.DEFINE_string("run", "", "folder of a finished run, of one fold, or of an export")
    input_flag = flags.DEFINE_multi_string("input", [], "image files, separated by commas, or folders")
    out_flag = flags.DEFINE_string("out", "predictions.csv", "CSV file for the predictions")
    export_flag = flags.DEFINE_string("export", "", "first do what `jaxboost export` does, into this new folder")
    masks_flag = flags.DEFINE_string(
        "masks", "", "lung masks of the images in --input, needed if the run was trained with data.masks"
    )
    table_flag = flags.DEFINE_string(
        "table",
        "",
        "CSV file with the column file and the clinical columns of the images in --input, if the run was trained with"
        " data.columns; empty: labels.csv in the folder of the images",
    )
    skip_flag = flags.DEFINE_bool("skip_faulty", False, "skip files that cannot be read, with a warning")
    batch_flag = flags.DEFINE_integer("batch_size", 0, "images per batch; 0: eval.batch_size of the run", lower_bound=0)
    set_flag = flags.DEFINE_multi_string(
        "set", [], "FIELD=DIR: new folder of frozen weights that have moved, for example boost.block=DIR"
    )

    def main() -> None:
        folder = required_folder(run_flag.value, "the folder of a finished run, or of an export")
        if not (input_flag.value or export_flag.value):
            raise UserError("nothing to do: give --input (images to predict)")
        with app.warnings_on_stderr():
            if export_flag.value:
                from jaxboost.inference.export import export_run

                export_run(folder, io.user_path(export_flag.value), set_flag.value)
            if input_flag.value:
                from jaxboost.inference.predict import predict

                predict(
                    folder,
                    files=input_flag.value,
                    out=io.user_path(out_flag.value),
                    masks=masks_flag.value,
                    table=table_flag.value,
                    skip_faulty=skip_flag.value,
                    batch_size=batch_flag.value,
                    moved=set_flag.value,
                )

    app.run(main, description=__doc__)


def required_folder(value: str, what: str) -> pathlib.Path:
    """Returns the folder that --run names, `what` in words; raises UserError if the flag is missing."""
    if not value:
        raise UserError(f"--run is missing: give {what}")
    return io.user_path(value)

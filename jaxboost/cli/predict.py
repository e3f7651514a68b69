"""Predicts images with a finished run or an export; with --export it exports the run instead or as well.

jaxboost predict --run RUN --input FILES|FOLDER [--out predictions.csv]

RUN is the folder of a run, of one fold of a cross-validation, or of an export.
"""

import pathlib

from absl import flags

from jaxboost.cli import app
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost predict`."""
    run_flag = flags.DEFINE_string("run", "", "folder of a finished run, of a fold, or of an export")
    input_flag = flags.DEFINE_multi_string("input", [], "files, with commas between them, or folders; may be repeated")
    out_flag = flags.DEFINE_string("out", "predictions.csv", "the table of predictions")
    export_flag = flags.DEFINE_string("export", "", "new folder, to which the run is exported")
    masks_flag = flags.DEFINE_string("masks", "", "of the lungs in --input, where the run was trained with data.masks")
    skip_flag = flags.DEFINE_bool("skip_faulty", False, "leave files out that cannot be read, with a warning")
    batch_flag = flags.DEFINE_integer("batch_size", 0, "images at once; 0: as the run was evaluated", lower_bound=0)
    set_flag = flags.DEFINE_multi_string("set", [], "FIELD=DIR, where frozen weights are now, as boost.block=DIR")

    def main() -> None:
        folder = required_folder(run_flag.value)
        from jaxboost.inference.predict import predict_or_export

        with app.warnings_on_stderr():
            predict_or_export(
                folder,
                files=input_flag.value,
                out=pathlib.Path(out_flag.value).expanduser(),
                target=pathlib.Path(export_flag.value).expanduser() if export_flag.value else None,
                masks=masks_flag.value,
                skip_faulty=skip_flag.value,
                batch_size=batch_flag.value,
                places=set_flag.value,
            )

    app.run(main, description=__doc__)


def required_folder(value: str) -> pathlib.Path:
    """The folder that --run names; raises UserError if it is missing."""
    if not value:
        raise UserError("--run is missing: give the folder of a finished run, or of an export")
    return pathlib.Path(value).expanduser()

"""Exports a finished run to one folder, which `jaxboost predict` and `jaxboost.exported` use without the training code.

jaxboost export --run RUN --out FOLDER

RUN is the folder of a run, or of one fold of a cross-validation.
"""

from absl import flags

from jaxboost import io
from jaxboost.cli import app
from jaxboost.cli.predict import required_folder
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost export`."""
    run_flag = flags.DEFINE_string("run", "", "folder of a finished run, or of one fold")
    out_flag = flags.DEFINE_string("out", "", "new folder for the export")
    set_flag = flags.DEFINE_multi_string(
        "set", [], "FIELD=DIR: new folder of frozen weights that have moved, for example boost.block=DIR"
    )

    def main() -> None:
        folder = required_folder(run_flag.value, "the folder of a finished run")
        if not out_flag.value:
            raise UserError("--out is missing: give the new folder of the export")
        from jaxboost.inference.export import export_run

        with app.warnings_on_stderr():
            export_run(folder, io.user_path(out_flag.value), set_flag.value)

    app.run(main, description=__doc__)

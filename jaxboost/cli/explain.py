"""Draws where a finished run looks: maps over images, beside those of a second run, and t-SNE of the features.

jaxboost explain --run RUN --input FILES|FOLDER --out DIR [--against RUN2] [--method gradcam|attention|activation|all]
jaxboost explain --run RUN --split test --worst 12 --out DIR [--tsne]

RUN is the folder of a run or of one fold of a cross-validation. DIR is new.
"""

from absl import flags

from jaxboost import io
from jaxboost.cli import app
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost explain`."""
    run_flag = flags.DEFINE_string("run", "", "folder of a finished run, or of one fold")
    against_flag = flags.DEFINE_string("against", "", "a second run, drawn beside the first, such as one without block")
    input_flag = flags.DEFINE_multi_string("input", [], "image files, separated by commas, or folders")
    split_flag = flags.DEFINE_string("split", "", "instead of --input: the errors in a split of the run's data: test")
    worst_flag = flags.DEFINE_integer("worst", 12, "with --split: the most errors that are drawn", lower_bound=1)
    out_flag = flags.DEFINE_string("out", "", "new folder for the pictures")
    class_flag = flags.DEFINE_string("class", "", "the class that is explained; empty: the predicted one")
    method_flag = flags.DEFINE_enum("method", "all", ["gradcam", "attention", "activation", "all"], "which maps")
    tsne_flag = flags.DEFINE_bool("tsne", False, "draw t-SNE of the features of all images too")
    masks_flag = flags.DEFINE_string("masks", "", "lung masks of the images in --input, see `jaxboost predict`")
    table_flag = flags.DEFINE_string("table", "", "clinical columns of the images in --input, see `jaxboost predict`")
    skip_flag = flags.DEFINE_bool("skip_faulty", False, "skip files that cannot be read, with a warning")
    batch_flag = flags.DEFINE_integer(
        "batch_size", 0, "images per batch; 0: eval.batch_size of the run, at most 16", lower_bound=0
    )
    root_flag = flags.DEFINE_string("root", "", "with --split: folder of the run's data, if it has moved")
    set_flag = flags.DEFINE_multi_string(
        "set", [], "FIELD=DIR: new folder of frozen weights that have moved, for example boost.block=DIR"
    )

    def main() -> None:
        for name, value in (("run", run_flag.value), ("out", out_flag.value)):
            if not value:
                what = "the folder of a finished run" if name == "run" else "a new folder for the pictures"
                raise UserError(f"--{name} is missing: give {what}")
        from jaxboost.explain import command

        with app.warnings_on_stderr():
            command.explain(
                command.Request(
                    run=io.user_path(run_flag.value),
                    against=io.user_path(against_flag.value) if against_flag.value else None,
                    out=io.user_path(out_flag.value),
                    files=input_flag.value,
                    split=split_flag.value,
                    worst=worst_flag.value,
                    class_name=class_flag.value,
                    method=method_flag.value,
                    tsne=tsne_flag.value,
                    masks=masks_flag.value,
                    table=table_flag.value,
                    skip_faulty=skip_flag.value,
                    batch_size=batch_flag.value,
                    root=root_flag.value,
                    moved=set_flag.value,
                )
            )

    app.run(main, description=__doc__)

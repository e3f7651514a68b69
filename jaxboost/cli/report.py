"""Makes a report from finished runs: one page that needs no network, its figures and tables as files, a model card.

jaxboost report --runs STUDY|RUNS --out DIR [--pictures N]

The pictures are of one run of the main comparison's first arm; they need the run's checkpoint and the data.
"""

from absl import flags

from jaxboost import io
from jaxboost.cli import app
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost report`."""
    runs_flag = flags.DEFINE_string("runs", "", "folder of a study, of runs on the same splits, or of a record.json")
    out_flag = flags.DEFINE_string("out", "", "folder for the report; an earlier report there is replaced")
    pictures_flag = flags.DEFINE_integer(
        "pictures", 12, "the most pictures of wrongly classified test images; 0: none", lower_bound=0
    )

    def main() -> None:
        folders = {"runs": runs_flag.value, "out": out_flag.value}
        for flag, value in folders.items():
            if not value:
                fix = "the folder of a study or of runs" if flag == "runs" else "a folder for the report"
                raise UserError(f"--{flag} is missing: give {fix}")
        runs, out = (io.user_path(value) for value in folders.values())
        if not runs.is_dir():
            raise UserError(f"--runs {runs} is not a folder: give the folder of a study or of runs")
        # They import scikit-learn and matplotlib: a mistyped flag is refused before.
        from jaxboost.reporting import report
        from jaxboost.studies import collect, compare

        # Before the figures are computed, which takes a minute.
        report.check_out(out)
        with app.warnings_on_stderr():
            record = collect.collect(runs)
            analysis = compare.analyse(record)
            page = report.write_with_pictures(runs, analysis, record, out, pictures=pictures_flag.value)
        print(f"{analysis['verdict']['sentence']}\n{page}")

    app.run(main, description=__doc__)

"""Trains a classifier, or continues a run that was stopped.

jaxboost train --config quickstart [--config.section.field=value ...] [--workdir DIR]

--config takes the name of a packaged config, or the path of a config file such as configs/quickstart.py. Some configs
take an argument after a colon, for example breastmnist_vits:reference.
"""

import pathlib

from absl import flags

from jaxboost import io
from jaxboost.cli import app, config_flag, together
from jaxboost.config import loading
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost train`."""
    config = config_flag.define()
    workdir_flag = flags.DEFINE_string(
        "workdir", "", "folder of the run, or with train.seeds of the folders seed<k>; empty: runs/<config>/seed<k>"
    )
    independent_flag = flags.DEFINE_bool(
        "independent_tasks",
        False,
        "the tasks of one srun or mpirun train different runs, each with a different --workdir",
    )

    processes = together.Together()

    def main() -> None:
        fields = config_flag.read(config)
        if not (independent_flag.value or processes.is_wanted()):
            app.check_single_task()
        if processes.is_wanted() and "train" in fields and fields.train.deterministic:
            raise UserError(
                "config field train.deterministic: it does not go together with --distributed, where sums over the"
                " processes have no fixed order: leave out one of them; on a CPU a run gives the same bits without it"
            )
        with processes.joined() as start:
            file, argument = loading.split_argument(config_flag.named(config))
            name = pathlib.Path(file).stem + (f"_{argument}" if argument else "")
            several = "train" in fields and fields.train.seeds > 1
            folder = io.user_path(workdir_flag.value or f"runs/{name}" + ("" if several else f"/seed{fields.seed}"))
            start(fields, folder)
            # Imported here: a mistyped flag should be reported before jax loads.
            from jaxboost.runs import cross_validation, seeds

            if several:
                seeds.train_and_evaluate(seeds.of_config(fields, folder))
            else:
                cross_validation.train_and_evaluate(fields, folder)

    app.run(main, resumable=True, description=__doc__)

"""Trains a classifier: python train.py --config configs/quickstart.py [--config.section.field=value] [--workdir DIR]"""

import pathlib

from absl import flags

from jaxboost.cli import app

_CONFIG = app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; empty: runs/<config>/seed<k>")
_INDEPENDENT = flags.DEFINE_bool(
    "independent_tasks", False, "each task of one srun or mpirun trains a run of its own, in a --workdir of its own"
)


def main() -> None:
    config = app.read_config(_CONFIG)
    if not _INDEPENDENT.value:
        app.check_single_task()
    # After the flags: a mistyped one should not wait for jax to load.
    from jaxboost.runs import cross_validation

    file, _, argument = app.config_file(_CONFIG).partition(":")
    name = pathlib.Path(file).stem + (f"_{argument}" if argument else "")
    workdir = _WORKDIR.value or f"runs/{name}/seed{config.seed}"
    cross_validation.train_and_evaluate(config, pathlib.Path(workdir).expanduser())


if __name__ == "__main__":
    app.run(main, resumable=True)

"""Trains a classifier: python train.py --config configs/quickstart.py [--config.section.field=value] [--workdir DIR]"""

import pathlib

from absl import flags

from jaxboost import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; empty: runs/<config>/seed<k>")


def main() -> None:
    config = cli.read_config(_CONFIG)
    # After the flags: a mistyped one should not wait for jax to load.
    from jaxboost.training import loop

    name = pathlib.Path(cli.config_file(_CONFIG).replace(":", "_")).name.replace(".py", "")
    workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else pathlib.Path("runs") / name / f"seed{config.seed}"
    loop.train_and_evaluate(config, workdir)


if __name__ == "__main__":
    cli.run(main)

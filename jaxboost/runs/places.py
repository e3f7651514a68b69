"""Where a run's folder may lie: not among what the run reads."""

import pathlib

from jaxboost import outputs
from jaxboost.config.types import Config
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError

# Fields of folders that a run reads, beside a user's own data.
_READ = ("data.masks", "model.weights", "boost.block", "pneumollm.vision", "llama.block")


def check(workdir: pathlib.Path, config: Config) -> None:
    """Checks that nothing which a run writes would be read as data or weights.

    Raises:
      UserError: the folder is, or would lie in, a folder that the config names as an input.
    """
    names = (*(("data.root",) if config.data.source == SOURCE else ()), *_READ)
    for name in names:
        section, field = name.split(".")
        value = config.get(section, {}).get(field, "")
        place = pathlib.Path(value).expanduser() if value else None
        if place is not None and place.is_dir() and outputs.is_inside(workdir, place):
            raise UserError(
                f"--workdir {workdir} lies in {name}={value}, which the run reads: what it writes there would be taken"
                " for input the next time: give a folder elsewhere"
            )

"""A run's folder may not lie inside a folder that the run reads."""

import pathlib

from jaxboost import outputs
from jaxboost.config.types import Config
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError

# Config fields of folders that a run reads, beside data.root.
_READ = ("data.masks", "model.weights", "boost.block", "pneumollm.vision", "llama.block")


def check(workdir: pathlib.Path, config: Config) -> None:
    """Checks that the run's own files cannot be read as data or weights.

    Args:
      workdir: folder of the run; it may be missing.
      config: of the run.

    Raises:
      UserError: the folder is, or would be inside, a folder that the config names as an input.
    """
    names = (*(("data.root",) if config.data.source == SOURCE else ()), *_READ)
    for name in names:
        section, field = name.split(".")
        value = config.get(section, {}).get(field, "")
        place = pathlib.Path(value).expanduser() if value else None
        if place is not None and place.is_dir() and outputs.is_inside(workdir, place):
            raise UserError(
                f"--workdir {workdir} lies in {name}={value}, which the run reads: the files that it writes there would"
                " be taken for input the next time: give a folder elsewhere"
            )

"""Reads and cleans up the folder of a run's checkpoints; `checkpointer` writes it.

`latest` holds the last states of the run, `best` the weights of their best epochs. `stored` reads the steps of both.
"""

import contextlib
import logging
import pathlib
import shutil
from typing import Any

from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.io import json_sha256
from jaxboost.models.frozen import Tree
from jaxboost.training.checkpoints import stored
from jaxboost.training.checkpoints.progress import Progress, from_json
from jaxboost.training.checkpoints.stored import CHECKSUMS, TEMPORARY, Checksums, DamagedError

FOLDER, LATEST, BEST, PROGRESS = "checkpoints", "latest", "best", "progress"
# A run is resumed from the last state, or from the state before it if the last one is damaged.
KEPT = 2
NO_CHECKSUMS = "%s has no checksums, an earlier version made it: damage to its arrays would not be noticed"

logger = logging.getLogger(__name__)


def tidy(folder: pathlib.Path, best: int) -> None:
    """Cleans up at the end of a run: half-written checkpoints of a killed process, and superfluous ones.

    Args:
      folder: of the checkpoints. Files that the system refuses to remove are left.
      best: the step whose weights the run's result has.
    """
    with contextlib.suppress(OSError):
        for name in (LATEST, BEST):
            remove_temporary(folder / name)
        bests = {step: best_of(folder / LATEST / str(step)) for step in stored.steps(folder / LATEST)}
        latest = [step for step, found in bests.items() if found is not None][:KEPT]
        for step in bests:
            if len(latest) == KEPT and step < latest[-1]:
                remove(folder / LATEST / str(step))
        needed = {best, *(bests[step] for step in latest)}
        for step in stored.steps(folder / BEST):
            if step not in needed:
                remove(folder / BEST / str(step))


def saved_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """The config in the last readable checkpoint below `folder`, as `continuing.fixed_fields` gives it; or None."""
    for step in stored.steps(folder / LATEST):
        with contextlib.suppress(DamagedError, UserError):
            if config := read_progress(folder / LATEST / str(step))[0].config:
                return continuing.fixed_fields(config)
    return None


def read_progress(folder: pathlib.Path) -> tuple[Progress, Checksums | None]:
    """The progress in the latest checkpoint at `folder`, and the checkpoint's checksums. Raises DamagedError."""
    sums = stored.read_checksums(folder)
    progress = from_json(folder, stored.read_note(folder, PROGRESS, sums))
    if sums is None and progress.config:
        raise DamagedError("its checksums are missing")
    return progress, sums


def restore_best(
    folder: pathlib.Path, step: int, params: Tree, stats: Tree, *, sha256: str = "", fix: str
) -> tuple[Tree, Tree]:
    """The best epoch's (weights, statistics) below `folder`; nothing is written. See `Checkpointer.restore_best`.

    Args:
      fix: what the user can do if they are damaged, for the message.
    """
    try:
        weights = read_best(folder, step, params, stats, sha256)
    except DamagedError as error:
        raise UserError(damaged_best(folder, step, error, fix)) from error
    if not (folder / BEST / str(step) / CHECKSUMS).exists():
        logger.warning(NO_CHECKSUMS, folder / BEST / str(step))
    return weights


def damaged_best(folder: pathlib.Path, step: int, error: DamagedError, fix: str) -> str:
    """The message for weights of the best epoch that cannot be used."""
    return f"{folder / BEST / str(step)}: the weights of the best epoch, step {step}, are damaged ({error}): {fix}"


def best_of(folder: pathlib.Path) -> int | None:
    """Step of the best epoch that the latest checkpoint at `folder` refers to; None if it is not known."""
    with contextlib.suppress(DamagedError, UserError):
        best = read_progress(folder)[0].best
        return best.step if best else None
    return None


def read_best(folder: pathlib.Path, step: int, params: Tree, stats: Tree, sha256: str) -> tuple[Tree, Tree]:
    """Like `restore_best`, but raises DamagedError."""
    path = folder.absolute() / BEST / str(step)
    sums = stored.read_checksums(path)
    if sha256 and (sums is None or json_sha256(sums.arrays) != sha256):
        raise DamagedError("their checksums are missing" if sums is None else "they are another run's")
    trees = stored.read_trees(path, best_items(params, stats), sums)
    return trees["params"], trees["stats"] if stats else stats


def best_items(params: Tree, stats: Tree) -> dict[str, Tree]:
    """The trees of a step of `best`, without an empty one, which Orbax refuses."""
    return {"params": params} | ({"stats": stats} if stats else {})


def remove_temporary(folder: pathlib.Path) -> None:
    """Removes half-written steps of a killed process."""
    if folder.is_dir():
        for path in folder.glob(f"*{TEMPORARY}*"):
            remove(path)


def remove(path: pathlib.Path) -> None:
    """Removes a file, a link, or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()

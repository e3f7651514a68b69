"""Run checkpoints: the latest states to resume from, and the trained weights of the best epoch.

They hold fingerprints of the frozen weights, not the weights. Everything that is restored is verified by checksums.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import orbax.checkpoint as ocp

from jaxboost import io, processes
from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.io import json_sha256
from jaxboost.models.frozen import Tree
from jaxboost.training.checkpoints import checkpoint_folder, stored
from jaxboost.training.checkpoints.checkpoint_folder import BEST, KEPT, LATEST, NO_CHECKSUMS, PROGRESS
from jaxboost.training.checkpoints.progress import Best, Progress, to_json
from jaxboost.training.checkpoints.stored import CHECKSUMS, POSITION, DamagedError
from jaxboost.training.step import TrainState

_CENTURY = 100 * 366 * 24 * 3600  # seconds

__all__ = ["Best", "Checkpointer", "Progress"]


logger = logging.getLogger(__name__)


class Checkpointer:
    """Keeps `latest` and `best` checkpoints below a folder.

    Orbax writes to a temporary name and renames, and older checkpoints are removed only afterwards. A process that is
    killed at any time leaves a usable `latest`, and the `best` that it refers to. The last two of `latest` are kept,
    and the steps of `best` that they refer to.

    Raises:
      UserError: there is a file instead of a folder.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder.absolute()
        _check_folders(self._folder)
        self._latest = ocp.CheckpointManager(self._folder / LATEST, options=_options(max_to_keep=KEPT))
        # This class removes old ones itself: the two of `latest` may refer to different steps of `best`.
        self._best = ocp.CheckpointManager(self._folder / BEST, options=_options(max_to_keep=None))
        # Step of a latest checkpoint -> step of the best that it refers to.
        self._best_of: dict[int, int | None] = {}
        self._last_best: int | None = None
        self._cleared = False

    def steps(self) -> list[int]:
        """Steps of the latest checkpoints, readable or not."""
        return stored.steps(self._folder / LATEST)

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, readable or not; None if there is none."""
        return max([*self._latest.all_steps(), *stored.steps(self._folder / LATEST)], default=None)

    def save_best(self, step: int, params: Tree, stats: Tree) -> str:
        """Saves the trained weights and statistics of the best epoch.

        Waits until they are written: no `latest` may refer to a missing `best`.

        Returns:
          The fingerprint of the saved weights, for `Best`.
        """
        trees = checkpoint_folder.best_items(params, stats)
        sums = stored.checksums(step, trees, {})
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items[CHECKSUMS] = ocp.args.JsonSave(sums)
        with self._writing():
            self._clear()
            if step in self._best.all_steps():
                self._best.delete(step)
            self._best.save(step, args=ocp.args.Composite(**items), force=True)
            self._best.wait_until_finished()
        self._last_best = step
        return json_sha256(sums["arrays"])

    def save_latest(self, state: TrainState, iterator: grain.DatasetIterator, progress: Progress) -> None:
        """Saves everything that a resumed run needs, in the background."""
        step, tree, notes, position = int(state.step), _state_item(state), to_json(progress), iterator.get_state()
        sums = stored.checksums(step, {"state": tree}, {PROGRESS: notes, POSITION: position})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            # One for all processes, so that another number of them can go on.
            position=ocp.args.JsonSave(position),
            progress=ocp.args.JsonSave(notes),
            checksums=ocp.args.JsonSave(sums),
        )
        with self._writing():
            self._clear()
            self._latest.wait_until_finished()
            self._best_of[step] = progress.best.step if progress.best else None
            self._remove_unneeded()
            self._latest.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until everything is written, and removes checkpoints that are no longer needed."""
        with self._writing():
            self._latest.wait_until_finished()
            self._remove_unneeded()

    def restore_latest(
        self,
        state: TrainState,
        iterator: grain.DatasetIterator,
        fingerprints: Mapping[str, str],
        config: Mapping[str, Any] | None = None,
        *,
        most: int | None = None,
    ) -> tuple[TrainState, Progress]:
        """Restores into the shapes and shardings of `state`, and sets the iterator's position.

        If a checkpoint or its best epoch's weights are damaged, it is set aside under another name, and the checkpoint
        before it is restored.

        Args:
          fingerprints: of the run's weights and data as they are now.
          config: of the run as it is now, see `continuing.fixed_fields`; None: not compared.
          most: the latest step to restore; later checkpoints are removed when an earlier one was restored. None: any.

        Raises:
          UserError: the run was made with other weights, data or config, or no checkpoint can be read.
        """
        problems: dict[int, DamagedError] = {}
        for step in processes.first("steps", lambda: stored.steps(self._folder / LATEST)):
            if most is not None and step > most:
                continue
            found = problem = None
            try:
                with processes.working("reads a checkpoint"):
                    found = self._restore(step, state, iterator, fingerprints, config)
            except DamagedError as error:
                problem = error
            # Damaged for one process is damaged for all.
            others = [text for text in processes.gather(f"step {step}", problem and str(problem)) if text]
            if found is None or others:
                problems[step] = problem or DamagedError(f"for another process: {others[0]}")
                continue
            self._go_on_from(step, problems, found[1])
            return found
        texts = [f"step {step}: {error}" for step, error in problems.items()]
        raise UserError(
            f"no checkpoint in {self._folder} can be used ({'; '.join(texts)}): bring the folder back from a backup, or"
            f" train again: remove it, or give another --workdir"
        )

    def restore_best(self, step: int, params: Tree, stats: Tree, sha256: str = "") -> tuple[Tree, Tree]:
        """The best epoch's (weights, statistics), restored into the shapes and shardings of `params` and `stats`.

        Args:
          sha256: their fingerprint, see `Best`; empty: unknown.

        Raises:
          UserError: they are damaged.
        """
        try:
            return checkpoint_folder.read_best(self._folder, step, params, stats, sha256)
        except DamagedError as error:
            fix = "give the same command again: it goes back to an earlier checkpoint where one is left"
            raise UserError(checkpoint_folder.damaged_best(self._folder, step, error, fix)) from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: Any) -> None:
        if not any(error):
            self.wait()
        with self._writing():
            self._latest.close()
            self._best.close()

    def _restore(
        self,
        step: int,
        state: TrainState,
        iterator: grain.DatasetIterator,
        fingerprints: Mapping[str, str],
        config: Mapping[str, Any] | None,
    ) -> tuple[TrainState, Progress]:
        """Reads the latest checkpoint of a step. Raises DamagedError, or UserError like `restore_latest`."""
        folder = self._folder / LATEST / str(step)
        progress, sums = checkpoint_folder.read_progress(folder)
        _check_same_run(self._folder, progress, fingerprints, config)
        trees = stored.read_trees(folder, {"state": _state_item(state)}, sums)
        position = stored.read_position(folder, sums)
        with stored.reading(folder):
            iterator.set_state(position)
        if int(trees["state"]["step"]) != step:
            raise DamagedError(f"its state is of step {int(trees['state']['step'])}")
        # Each step takes one batch, so both numbers are equal.
        if position.get("next_index", step) != step and not sums:
            raise DamagedError("its position in the data is of another step")
        if sums is None:
            logger.warning(NO_CHECKSUMS, folder)
        if best := progress.best:
            try:
                checkpoint_folder.read_best(self._folder, best.step, state.params, state.stats, best.sha256)
            except DamagedError as error:
                raise DamagedError(f"the best epoch's weights, {BEST}/{best.step}, are damaged: {error}") from error
        return dataclasses.replace(state, **trees["state"]), progress

    def _go_on_from(self, step: int, problems: Mapping[int, DamagedError], progress: Progress) -> None:
        """Makes `step` the latest checkpoint: sets later ones aside, and removes later steps of `best`."""
        for later, error in problems.items() if processes.is_first() else ():
            place = self._set_aside(self._folder / LATEST / str(later))
            logger.warning(
                "the checkpoint of step %d is damaged (%s): going on from step %d, what came after is done again; the"
                " damaged one is kept as %s",
                later,
                error,
                step,
                place,
            )
        for name in (LATEST, BEST) if processes.is_first() else ():
            for later in stored.steps(self._folder / name):
                if later > step:
                    checkpoint_folder.remove(self._folder / name / str(later))
        self._cleared = False
        self._clear()
        self._best_of[step] = progress.best.step if progress.best else None

    def _remove_unneeded(self) -> None:
        """Removes best weights that no latest checkpoint refers to, nor the next one will."""
        # Orbax deletes in all processes, which wait for each other: what one of them reads decides for all.
        for step in processes.first("unneeded", self._unneeded):
            self._best.delete(step)

    def _unneeded(self) -> list[int]:
        needed = {self._last_best}
        for step in self._latest.all_steps():
            if step not in self._best_of:
                self._best_of[step] = checkpoint_folder.best_of(self._folder / LATEST / str(step))
            needed.add(self._best_of[step])
        return [step for step in self._best.all_steps() if step not in needed]

    def _clear(self) -> None:
        """Before the first save: removes half-written steps, and renames folders that Orbax may take for a step."""
        if self._cleared:
            return
        self._cleared = True
        processes.first("clear", self._clear_folders)
        for manager in (self._latest, self._best):
            manager.reload()

    def _clear_folders(self) -> None:
        for name in (LATEST, BEST):
            checkpoint_folder.remove_temporary(self._folder / name)
            whole = set(map(str, stored.steps(self._folder / name)))
            for path in sorted((self._folder / name).iterdir()):
                # Orbax takes names such as "007" for numbers too.
                if path.name.isdigit() and path.name not in whole:
                    logger.warning("%s is no checkpoint: it is kept as %s", path, self._set_aside(path))

    def _set_aside(self, path: pathlib.Path) -> pathlib.Path:
        """Renames `latest/7` to `damaged-latest-7`, which nothing reads; the new path."""
        target = self._folder / f"damaged-{path.parent.name}-{path.name}"
        count = 1
        while target.exists():
            count += 1
            target = self._folder / f"damaged-{path.parent.name}-{path.name}-{count}"
        path.rename(target)
        return target

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises UserError if a save fails, now or earlier in the background."""
        try:
            yield
        except Exception as error:
            folder = self._latest.directory.parent
            cause = io.os_error(error)
            if not self._latest.directory.is_dir() or _is_removed(error):
                # Orbax raises different errors then, depending on how far the save was.
                cause = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if cause is None:
                raise
            raise io.refused(folder, cause, self.kept()) from error

    def kept(self) -> str:
        """The end of the message about a failed write: which checkpoint is intact."""
        step = None
        with contextlib.suppress(OSError):
            # From disk: the manager counts a step that is still being written.
            step = max(stored.steps(self._folder / LATEST), default=None)
        whole = "there is no checkpoint yet" if step is None else f"the checkpoint of step {step} is whole"
        return f"; then run the same command again; {whole}"


def _is_removed(error: Exception) -> bool:
    """Whether somebody removed the files of a save while it was written.

    Orbax reads some of them before it gives the step its name.
    """
    return isinstance(error, ValueError) and str(error).startswith(("NOT_FOUND: ", "No ArrayMetadata found "))


def _options(*, max_to_keep: int | None) -> ocp.CheckpointManagerOptions:
    """How checkpoints are written.

    No time-out may end a save. Orbax measures them with the system's clock, which may jump, hence a century. Folders
    are made in the foreground: if that fails in the background, other threads wait for minutes.
    """
    waits = ocp.options.AsyncOptions(timeout_secs=_CENTURY, create_directories_asynchronously=False)
    return ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True, async_options=waits)


# Empty fields are left out: Orbax would refuse an older checkpoint that lacks such a field.


def _state_item(state: TrainState) -> dict[str, Any]:
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in values.items() if name not in ("stats", "ema") or value}


def _check_same_run(
    folder: pathlib.Path, progress: Progress, fingerprints: Mapping[str, str], config: Mapping[str, Any] | None
) -> None:
    """Raises UserError if the run was made with other weights, data or config."""
    # What an earlier version recorded lacks fields.
    before, fields = continuing.fixed_fields(progress.config), continuing.fixed_fields(config or {})
    if config is not None and progress.config and (differing := continuing.differing(before, fields)):
        raise UserError(
            f"{folder} is of a run of another config, which differs in {', '.join(differing)}: give another --workdir,"
            " or remove it"
        )
    then, now = progress.fingerprints, fingerprints
    roles = [role for role in sorted({*then, *now}) if then.get(role) != now.get(role)]
    differing = [f"{role} ({then.get(role, 'none')[:12]} there, {now.get(role, 'none')[:12]} now)" for role in roles]
    if differing:
        raise UserError(
            f"{folder} was trained with other {' and '.join(differing)}: give the same as then, or another --workdir"
        )


def _check_folders(folder: pathlib.Path) -> None:
    for path in (folder, folder / LATEST, folder / BEST):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is not a folder: move it away, or give another --workdir")

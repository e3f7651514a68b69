"""Run checkpoints: the latest state to resume from, and the trained weights of the best epoch.

They never hold frozen weights, only their fingerprints.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.models.frozen import Tree
from jaxboost.training.step import TrainState

_CENTURY = 100 * 366 * 24 * 3600  # seconds


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch so far: number (from 1), step, and the value of the selection metric there."""

    epoch: int
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run knows beside its state.

    Attributes:
      fingerprints: of what the run was given beside its config: pretrained parts by their role, a user's own data.
      best: None before the first validation.
      seconds: spent so far, over all sessions of the run.
      validated: False where a signal stopped the run between the last step of an epoch and its validation, which is
        then done first.
    """

    fingerprints: Mapping[str, str]
    best: Best | None
    seconds: float
    validated: bool = True


class Checkpointer:
    """Keeps `latest` and `best` checkpoints below a folder.

    Orbax writes to a temporary name and renames, and removes a predecessor only afterwards: a kill at any moment
    leaves a usable `latest`, and the `best` that it refers to.
    """

    def __init__(self, folder: pathlib.Path):
        folder = folder.absolute()
        self._latest = ocp.CheckpointManager(folder / "latest", options=_options(max_to_keep=1))
        # Two, since a kill may come after a new best was saved and before the `latest` that refers to it.
        self._best = ocp.CheckpointManager(folder / "best", options=_options(max_to_keep=2))

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None where there is none."""
        return self._latest.latest_step()

    def save_best(self, step: int, params: Tree, stats: Tree) -> None:
        """Saves the trained weights and statistics of the best epoch, and waits.

        A later `latest` must not point to a missing best.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in _best_items(params, stats).items()}
        with self._writing():
            if step in self._best.all_steps():
                self._best.delete(step)
            self._best.save(step, args=ocp.args.Composite(**items), force=True)
            self._best.wait_until_finished()

    def save_latest(self, state: TrainState, iterator: grain.DatasetIterator, progress: Progress) -> None:
        """Saves everything that a resumed run needs, in the background."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_state_item(state)),
            data=grain.checkpoint.CheckpointSave(iterator),
            progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        )
        with self._writing():
            self._latest.save(int(state.step), args=args, force=True)

    def restore_latest(
        self, state: TrainState, iterator: grain.DatasetIterator, fingerprints: Mapping[str, str]
    ) -> tuple[TrainState, Progress]:
        """Restores into the shapes and shardings of `state`, sets the iterator's position.

        Raises:
          UserError: the run was made with other weights or data.
        """
        step = self._latest.latest_step()
        saved = self._latest.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        progress = Progress(
            fingerprints=saved["fingerprints"],
            best=Best(**saved["best"]) if saved["best"] else None,
            seconds=saved["seconds"],
            validated=saved.get("validated", True),
        )
        before, now = progress.fingerprints, fingerprints
        differing = [
            f"{role} ({before.get(role, 'none')[:12]} there, {now.get(role, 'none')[:12]} now)"
            for role in sorted({*before, *now})
            if before.get(role) != now.get(role)
        ]
        if differing:
            raise UserError(
                f"{self._latest.directory.parent} was trained with other {' and '.join(differing)}: give what it had,"
                " or another --workdir"
            )
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, _state_item(state))),
            data=grain.checkpoint.CheckpointRestore(iterator),
        )
        for later in self._best.all_steps():
            if later > step:
                self._best.delete(later)
        return state.replace(**self._latest.restore(step, args=args)["state"]), progress

    def restore_best(self, step: int, params: Tree, stats: Tree) -> tuple[Tree, Tree]:
        """The best epoch's (weights, statistics), restored into the shapes and shardings of `params` and `stats`."""
        targets: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, _best_items(params, stats))
        items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        restored = self._best.restore(step, args=ocp.args.Composite(**items))
        return restored["params"], restored["stats"] if stats else stats

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: Any) -> None:
        # Waits for pending writes.
        with self._writing():
            self._latest.close()
            self._best.close()

    def wait(self) -> None:
        """Waits until what is saved in the background is on the disk."""
        with self._writing():
            self._latest.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises UserError where what is saved, now or before in the background, cannot be written."""
        try:
            yield
        except Exception as error:
            folder = self._latest.directory.parent
            cause = io.os_error(error)
            if not self._latest.directory.is_dir():
                # What the storage makes of that depends on where it was.
                cause = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if cause is None:
                raise
            raise io.refused(folder, cause, self.kept()) from error

    def kept(self) -> str:
        """How a message on a failed write ends: which checkpoint is whole."""
        kept = None
        with contextlib.suppress(OSError):
            # From disk: what is being written counts as there already.
            kept = max(self._latest.all_steps(read=True), default=None)
        whole = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is whole"
        return f"; then run the same command again; {whole}"


def _options(*, max_to_keep: int) -> ocp.CheckpointManagerOptions:
    """How checkpoints are written.

    Orbax measures its time-outs with the system's clock, which may jump: none of them may end a save, so the longest
    is taken. Folders are made at once: where that fails in the background, other threads wait for minutes.
    """
    waits = ocp.options.AsyncOptions(timeout_secs=_CENTURY, create_directories_asynchronously=False)
    return ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True, async_options=waits)


# Orbax refuses a checkpoint that lacks a field which is empty, such as one written before there was that field.


def _state_item(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name not in ("stats", "ema") or value}


def _best_items(params: Tree, stats: Tree) -> dict[str, Tree]:
    return {"params": params} | ({"stats": stats} if stats else {})

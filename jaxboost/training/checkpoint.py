"""Run checkpoints: the latest state to resume from, and the trained weights of the best epoch.

They never hold frozen weights, only their fingerprints.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from jaxboost.errors import UserError
from jaxboost.models.frozen import Tree
from jaxboost.training.step import TrainState


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
    """

    fingerprints: Mapping[str, str]
    best: Best | None
    seconds: float


class Checkpointer:
    """Keeps `latest` and `best` checkpoints below a folder.

    Orbax writes to a temporary name and renames, and removes a predecessor only afterwards: a kill at any moment
    leaves a usable `latest`, and the `best` that it refers to.
    """

    def __init__(self, folder: pathlib.Path):
        folder = folder.absolute()
        self._latest = ocp.CheckpointManager(
            folder / "latest", options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        )
        # Two, since a kill may come after a new best was saved and before the `latest` that refers to it.
        self._best = ocp.CheckpointManager(
            folder / "best", options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        )

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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises UserError where what is saved, now or before in the background, cannot be written."""
        try:
            yield
        except (OSError, ValueError) as error:
            # Orbax's storage has no error class of its own for this.
            if isinstance(error, ValueError) and "rror writing" not in str(error):
                raise
            reason = error.strerror if isinstance(error, OSError) else _system_error(str(error))
            # From disk: what is being written counts as there already.
            kept = max(self._latest.all_steps(read=True), default=None)
            raise UserError(
                f"{self._latest.directory.parent} cannot be written ({reason}): make room, then give the same command"
                f" again; {'there is no checkpoint yet' if kept is None else f'the checkpoint of step {kept} is whole'}"
            ) from error


def _system_error(text: str) -> str:
    """The operating system's own words for a message of Orbax's storage, which has its number."""
    found = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(found[1])) if found else text.partition("\n")[0]


# Orbax refuses a checkpoint that lacks a field which is empty, such as one written before there was that field.


def _state_item(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name not in ("stats", "ema") or value}


def _best_items(params: Tree, stats: Tree) -> dict[str, Tree]:
    return {"params": params} | ({"stats": stats} if stats else {})

"""Reads a saved step of a run, and verifies its checksums.

A step is a folder that Orbax wrote, named by the number of the step. In addition to its trees of arrays and its notes
(JSON) it has an item `checksums`: SHA-256 of every array and of every note, of the step's number, and of the item
itself. Steps of earlier versions have no checksums.
"""

import contextlib
import dataclasses
import gc
import hashlib
import logging
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from pydantic import Field

from jaxboost import io, schema
from jaxboost.errors import UserError
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays

CHECKSUMS = "checksums"
POSITION = "position"
# The item of earlier versions instead, and its file.
_GRAIN, _GRAIN_FILE = "data", "process_0-of-1.json"
TEMPORARY = ".orbax-checkpoint-tmp"
# Orbax's name of the file in which it keeps a JSON item.
_JSON_FILE = "metadata"
# Messages of reads that were in progress while another read failed.
_OTHER_READS = ("Event loop is closed", "Encountered error while reading array")


class DamagedError(Exception):
    """A saved step cannot be read, or has changed since it was saved. The message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Checksums:
    """The content of the item `checksums`.

    Attributes:
      step: number of the step.
      arrays: path -> dtype, shape and SHA-256 of an array, as `of_trees` gives them.
      notes: name -> SHA-256 of a JSON value, as `io.json_sha256` gives it.
      sha256: of the three above.
    """

    step: Annotated[int, Field(ge=0)]
    arrays: dict[str, str]
    notes: dict[str, str]
    sha256: str


def checksums(step: int, trees: Mapping[str, Tree], notes: Mapping[str, Any]) -> dict[str, Any]:
    """The item `checksums` of a step: see `Checksums`."""
    content = {
        "step": step,
        "arrays": of_trees(trees),
        "notes": {name: io.json_sha256(note) for name, note in notes.items()},
    }
    return {**content, "sha256": io.json_sha256(content)}


def of_trees(trees: Mapping[str, Tree]) -> dict[str, str]:
    """Path -> "DTYPE[SHAPE] SHA-256 of the bytes" of every array."""
    found = {}
    for path, leaf in _leaves(trees):
        # One at a time: all of them together may be large.
        array = np.ascontiguousarray(arrays.on_host(leaf))
        digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
        found[path] = f"{_head(leaf)} {digest}"
    return found


def steps(folder: pathlib.Path) -> list[int]:
    """Numbers of the steps that have a folder in `folder`, readable or not, from the last to the first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted((int(name) for name in names if _is_number(name) and str(int(name)) == name), reverse=True)


def read_checksums(folder: pathlib.Path) -> Checksums | None:
    """The checksums of the step at `folder`; None if it has none.

    Raises:
      DamagedError: they cannot be read, or are of another step.
    """
    with reading(folder):
        if not folder.is_dir():
            raise DamagedError("it is missing")
        if not any(folder.iterdir()):
            raise DamagedError("it is empty")
        if not (folder / CHECKSUMS).exists():
            return None
        content = io.read_json(folder / CHECKSUMS / _JSON_FILE)
        found = schema.parse(Checksums, content, where=CHECKSUMS, fix="")
        if found.sha256 != io.json_sha256({name: content[name] for name in ("step", "arrays", "notes")}):
            raise DamagedError("its checksums were altered")
        if str(found.step) != folder.name:
            raise DamagedError(f"it is of step {found.step}")
        return found


def read_note(folder: pathlib.Path, name: str, sums: Checksums | None) -> Any:
    """A JSON item of the step at `folder`.

    Raises:
      DamagedError: it cannot be read, or is not what was saved.
    """
    with reading(folder):
        value = io.read_json(folder / name / _JSON_FILE)
        _check_note(name, value, sums)
        return value


def read_position(folder: pathlib.Path, sums: Checksums | None) -> Any:
    """The position in the data of the step at `folder`: the state of the iterator, the same in every process.

    Raises:
      DamagedError: it cannot be read, or is not what was saved.
    """
    if (folder / POSITION).exists():
        return read_note(folder, POSITION, sums)
    # As grain wrote it in earlier versions, which had one process.
    with reading(folder):
        value = io.read_json(folder / _GRAIN / _GRAIN_FILE)
        _check_note(_GRAIN, value, sums)
        return value


def read_trees(folder: pathlib.Path, targets: Mapping[str, Tree], sums: Checksums | None) -> dict[str, Tree]:
    """The trees of the step at `folder`, restored into the shapes and shardings of `targets`.

    Each of several processes reads for itself, so that none waits for another that cannot read.

    Raises:
      DamagedError: they cannot be read, or are not what was saved.
    """
    with reading(folder):
        if sums:
            _check_shapes(targets, sums)
        shapes: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(targets))
        trees = _read(folder, shapes) if jax.process_count() == 1 else _read_alone(folder, shapes)
        if sums:
            found = of_trees(trees)
            if wrong := [path for path in found if found[path] != sums.arrays[path]]:
                raise DamagedError(f"array {wrong[0]}{_others(wrong)} is not what was saved")
        if jax.process_count() == 1:
            return trees
        return jax.tree.map(lambda array, shape: arrays.place(array, shape.sharding), trees, shapes)


def _read(folder: pathlib.Path, shapes: Mapping[str, Any]) -> dict[str, Tree]:
    items = {name: ocp.args.StandardRestore(target) for name, target in shapes.items()}
    with _quietly(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(folder.absolute(), args=ocp.args.Composite(**items))
    return {name: restored[name] for name in shapes}


def _read_alone(folder: pathlib.Path, shapes: Mapping[str, Any]) -> dict[str, Tree]:
    """As `_read`, but on the host, and without waiting for other processes."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    trees = {}
    for name, target in shapes.items():
        # Nothing is read into these: they say that arrays of the host are wanted.
        wanted = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), target)
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with _quietly(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            trees[name] = checkpointer.restore(folder.absolute() / name, args=ocp.args.StandardRestore(wanted))
    return trees


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong while the step at `folder` is read into `DamagedError`.

    Raises:
      UserError: it may not be read.
    """
    try:
        yield
    except (DamagedError, MemoryError):
        raise
    # Orbax has no error classes for damage: nearly any error may be raised.
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in reason:
            raise UserError(f"{folder} may not be read: give yourself the permission, then try again") from error
        # The device has too little memory: the step is not damaged.
        if "RESOURCE_EXHAUSTED" in reason:
            raise
        raise DamagedError(reason[:160] or type(error).__name__) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the traces that Orbax's other reads leave where one of them fails: the error itself says it all."""
    before, log = sys.unraisablehook, logging.getLogger("asyncio")
    was_disabled = log.disabled

    def hook(unraisable: Any) -> None:
        if not any(text in str(unraisable.exc_value) for text in _OTHER_READS):
            before(unraisable)

    sys.unraisablehook, log.disabled = hook, True
    try:
        yield
    except BaseException:
        # Reads that failed and wait to be reported, and reads that never started.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        # The hook stays: some reads end later, in other threads.
        raise
    else:
        sys.unraisablehook = before
    finally:
        log.disabled = was_disabled


def _check_note(name: str, value: Any, sums: Checksums | None) -> None:
    if sums and sums.notes.get(name) != io.json_sha256(value):
        raise DamagedError(f"{name} is not what was saved")


def _check_shapes(targets: Mapping[str, Tree], sums: Checksums) -> None:
    """Raises DamagedError, before anything large is read, if the saved arrays are not those of `targets`."""
    saved = {path: text.partition(" ")[0] for path, text in sums.arrays.items()}
    wanted = {path: _head(leaf) for path, leaf in _leaves(targets)}
    if wrong := [path for path in sorted({*saved, *wanted}) if saved.get(path) != wanted.get(path)]:
        path = wrong[0]
        raise DamagedError(
            f"it is of another model: array {path}{_others(wrong)} is {saved.get(path, 'missing')} there, and"
            f" {wanted.get(path, 'missing')} in the model"
        )


def _leaves(trees: Mapping[str, Tree]) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree.flatten_with_path(dict(trees))
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _head(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def _is_number(name: str) -> bool:
    # More digits than any step has would make Python refuse the number.
    return name.isascii() and name.isdigit() and len(name) < 20

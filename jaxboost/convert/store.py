"""A block: converted layers as one orbax checkpoint each, and a manifest that says what they are."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from jaxboost.convert import stored_arrays
from jaxboost.convert.manifests import Manifest
from jaxboost.convert.manifests import read_block as read_manifest
from jaxboost.convert.names import FINAL_NORM, weight_shapes
from jaxboost.convert.placing import Pack, Placement, first_device, placed, with_layer
from jaxboost.errors import UserError
from jaxboost.models.frozen import Quantized

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Restored layers.

    Attributes:
      layers: the L layers used, in order.
      weights: name -> array stacked over the layers: (L, D), or (L, in, out) for linear maps, which may be packed.
      final_norm: (D,), None if it was not asked for.
      fingerprint: see `fingerprint_of`.
    """

    manifest: Manifest
    layers: tuple[int, ...]
    weights: Mapping[str, jax.Array | Quantized]
    final_norm: jax.Array | None
    fingerprint: str


def fingerprint(leaves: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(leaves.items()):
        _update(digest, name, array)
    return digest.hexdigest()


def fingerprint_of(manifest: Manifest, layers: tuple[int, ...] | None, final_norm: bool) -> str:
    """SHA-256 that identifies the used weights (`layers` in order, None for all) and the constants that go with them.

    The manifest alone is read.

    Raises:
      UserError: if the block does not hold them.
    """
    used = [str(layer) for layer in _checked_layers(manifest, layers)]
    if final_norm:
        _check_final_norm(manifest)
        used.append(FINAL_NORM)
    constants = dataclasses.asdict(manifest.config)
    # Blocks of the first release do not know of it.
    if constants["rope_unsupported"] is None:
        del constants["rope_unsupported"]
    # eps or rope_base changed in the manifest make another function of the same weights.
    return joined_fingerprint({key: manifest.sha256[key] for key in used}, constants)


def joined_fingerprint(sha256: Mapping[str, str], constants: Mapping[str, Any]) -> str:
    """SHA-256 over the fingerprints of parts, in the order given, and the constants that go with their weights."""
    lines = [f"{key} {value}\n" for key, value in sha256.items()]
    lines.append(json.dumps(constants, sort_keys=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_block(
    path: str | os.PathLike,
    layers: tuple[int, ...] | None,
    *,
    final_norm: bool,
    placement: Placement | None = None,
    pack: Pack | None = None,
) -> Block:
    """Restores the wanted layers of the block at `path`, each verified against the manifest.

    Args:
      path: folder of the block.
      layers: numbers of the layers, in the order of use; None for all.
      final_norm: whether the final norm is wanted too.
      placement: where an array of the result goes, by its shape; it may split any axis of stacked weights but the
        first. Default: the first local device.
      pack: how linear maps are held. Each is packed as soon as it is read. Default: as they are stored.

    Raises:
      UserError: if the block is missing or altered, or does not hold what is wanted.
    """
    manifest = read_manifest(path)
    layers = _checked_layers(manifest, layers)
    identity = fingerprint_of(manifest, layers, final_norm)
    placement = placement or first_device
    shapes, dtype = weight_shapes(manifest.config), DTYPES[manifest.dtype]
    weights: dict[str, jax.Array | Quantized] = {}
    for position, layer in enumerate(layers):
        for name, array in restored(path, str(layer), shapes, dtype, manifest.sha256):
            how = pack if array.ndim == 2 else None
            weights[name] = with_layer(weights.get(name), array, position, len(layers), placement, how)
    norm = None
    if final_norm:
        shape = {"scale": (manifest.config.width,)}
        for _, array in restored(path, FINAL_NORM, shape, dtype, manifest.sha256):
            norm = placed(array, placement)
    return Block(manifest=manifest, layers=layers, weights=weights, final_norm=norm, fingerprint=identity)


def save(folder: pathlib.Path, leaves: Mapping[str, jax.Array]) -> None:
    """Writes arrays as one checkpoint, without a copy of them in memory."""
    # One file per array: the merging of OCDBT would hold a second copy.
    with ocp.StandardCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(folder.absolute(), dict(leaves))
        checkpointer.wait_until_finished()
    # Orbax notes in its marker where it wrote to; a block may be passed on, without this machine's paths.
    marker = folder / "commit_success.txt"
    if marker.exists():
        marker.write_text("Checkpoint commit was successful\n", encoding="utf-8")


def restored(
    path: str | os.PathLike,
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    sha256: Mapping[str, str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of one part in the order of their names, and fails at the end if they were altered.

    Args:
      path: of the block or vision encoder.
      key: of the part in its manifest.
      shapes: of the arrays.
      sha256: key -> fingerprint, from the manifest.

    Raises:
      UserError: if the part is missing or altered.
    """
    folder = pathlib.Path(path) / part_name(key)
    digest = hashlib.sha256()
    altered = UserError(f"{folder} is altered or truncated: convert again")
    stored_arrays.check_inside(pathlib.Path(path), folder)
    for name, shape in sorted(shapes.items()):
        if not stored_arrays.is_sound(folder / name, shape, dtype):
            raise altered
        # One array at a time, so that the host holds no second copy of the layer.
        wanted = ocp.args.PyTreeRestore(
            item={name: np.empty(shape, dtype)},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                array = checkpointer.restore(folder.absolute(), args=wanted)[name]
        except Exception as error:
            # A damaged file can raise any error in two libraries; nothing but reading the file happens here.
            raise altered from error
        if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (shape, dtype):
            raise altered
        _update(digest, name, array)
        yield name, array
    if digest.hexdigest() != sha256[key]:
        raise altered


def part_name(key: str) -> str:
    """Folder of a part by its key in the manifest, which for a layer is its number."""
    return f"layer_{int(key):05d}" if key.isdigit() else key


def _update(digest: "hashlib._Hash", name: str, array: np.ndarray) -> None:
    digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _checked_layers(manifest: Manifest, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    if layers is None:
        return manifest.layers
    absent = [str(layer) for layer in layers if layer not in manifest.layers]
    if absent or not layers:
        held = ",".join(map(str, manifest.layers))
        asked = f"not layer {', '.join(absent)}" if absent else "and none of them was asked for"
        wanted = ",".join(map(str, layers)) or "LAYERS"
        raise UserError(
            f"the block from {manifest.source} holds the layers {held}, {asked}: convert what is needed with "
            f"`python convert_weights.py --source SOURCE --layers {wanted} --out DIR`"
        )
    return tuple(layers)


def _check_final_norm(manifest: Manifest) -> None:
    if not manifest.final_norm:
        raise UserError(
            f"the block from {manifest.source} was converted without the final norm: convert again without "
            "--nofinal_norm, or do not ask for it"
        )

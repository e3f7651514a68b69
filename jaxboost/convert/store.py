"""A block: converted layers as one orbax checkpoint each, and a manifest that says what they are."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from jaxboost.convert.names import FINAL_NORM, weight_shapes
from jaxboost.convert.placing import Pack, Placement, first_device, placed, with_layer
from jaxboost.errors import UserError
from jaxboost.models.frozen import Packed
from jaxboost.models.llama import LlamaConfig

FORMAT_VERSION = 1
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MANIFEST = "manifest.json"

# What a manifest can describe -> its name for users, and what they give as --layers for it. A block's manifest has no
# "kind".
BLOCK, VISION = "llama", "vision"
_KINDS = {BLOCK: ("block", "LAYERS"), VISION: ("vision tower", "all")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a block holds.

    Attributes:
      format_version: version of this format.
      source: where the weights come from: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, meta, gguf or hub.
      layers: numbers of the layers, in the order in which they are used.
      layers_in_source: how many layers the source has.
      final_norm: whether the norm after the source's last layer is there too.
      dtype: float32 or bfloat16.
      config: shape and constants of the layers.
      sha256: fingerprint of each layer (key: its number) and of the final norm (key: "final_norm").
      jaxboost_version: version that converted.
    """

    format_version: int = FORMAT_VERSION
    source: str
    source_format: str
    layers: tuple[int, ...]
    layers_in_source: int
    final_norm: bool
    dtype: str
    config: LlamaConfig
    sha256: Mapping[str, str]
    jaxboost_version: str


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
    weights: Mapping[str, jax.Array | Packed]
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
    # eps or rope_base changed in the manifest make another function of the same weights.
    return joined_fingerprint({key: manifest.sha256[key] for key in used}, dataclasses.asdict(manifest.config))


def joined_fingerprint(sha256: Mapping[str, str], constants: Mapping[str, Any]) -> str:
    """SHA-256 over the fingerprints of parts, in the order given, and the constants that go with their weights."""
    lines = [f"{key} {value}\n" for key, value in sha256.items()]
    lines.append(json.dumps(constants, sort_keys=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(path: str | os.PathLike) -> Manifest:
    """Reads the manifest of the block at `path`.

    Raises:
      UserError: if there is no block, its manifest is broken, or it has another format version.
    """
    fields = read_fields(path, BLOCK)
    try:
        factors = fields["config"].pop("rope_factors")
        config = LlamaConfig(**fields.pop("config"), rope_factors=None if factors is None else tuple(factors))
        manifest = Manifest(**fields | {"layers": tuple(fields["layers"])}, config=config)
        keys = [str(layer) for layer in manifest.layers] + [FINAL_NORM] * manifest.final_norm
        if manifest.dtype not in DTYPES or set(keys) != set(manifest.sha256):
            raise ValueError("contradictory entries")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken_manifest(path) from error
    return manifest


def read_fields(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The entries of the manifest at `path`.

    Args:
      kind: BLOCK or VISION: what is wanted there.

    Raises:
      UserError: if there is no such folder, it holds the other kind, its manifest is not JSON, or it has another format
        version.
    """
    file, (wanted, layers) = Path(path) / MANIFEST, _KINDS[kind]
    command = f"`python convert_weights.py --source SOURCE --layers {layers} --out"
    if not file.is_file():
        raise UserError(f"there is no {wanted} at {path} (no {MANIFEST}): make one with {command} {path}`")
    try:
        fields = json.loads(file.read_bytes())
        version = fields["format_version"]
        found, _ = _KINDS[fields.get("kind", BLOCK)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken_manifest(path) from error
    if found != wanted:
        raise UserError(f"{path} holds a {found}, not a {wanted}: name another folder, or make one with {command} DIR`")
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has the format version {version!r}, this is {FORMAT_VERSION}: convert again")
    return fields


def kind_at(path: str | os.PathLike) -> str:
    """What users call what is at `path`: "vision tower", or "block", also where its manifest is broken."""
    try:
        return _KINDS[json.loads((Path(path) / MANIFEST).read_bytes())["kind"]][0]
    except (OSError, ValueError, LookupError, TypeError):
        return _KINDS[BLOCK][0]


def broken_manifest(path: str | os.PathLike) -> UserError:
    """The error for a manifest whose entries are not what they should be."""
    return UserError(f"{Path(path) / MANIFEST} is broken: convert again")


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
    weights: dict[str, jax.Array | Packed] = {}
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


def save(folder: Path, leaves: Mapping[str, jax.Array]) -> None:
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
      path: of the block or vision tower.
      key: of the part in its manifest.
      shapes: of the arrays.
      sha256: key -> fingerprint, from the manifest.

    Raises:
      UserError: if the part is missing or altered.
    """
    folder = Path(path) / part_name(key)
    digest = hashlib.sha256()
    altered = UserError(f"{folder} is altered or truncated: convert again")
    for name, shape in sorted(shapes.items()):
        # One array at a time, so that the host holds no second copy of the layer.
        wanted = ocp.args.PyTreeRestore(
            item={name: np.empty(shape, dtype)},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                array = checkpointer.restore(folder.absolute(), args=wanted)[name]
        except (ValueError, KeyError, TypeError, OSError) as error:
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

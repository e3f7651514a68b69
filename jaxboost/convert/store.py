"""Blocks: converted decoder layers and their manifest, read back and verified."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxboost.convert import manifests, part_file
from jaxboost.convert.manifests import Manifest
from jaxboost.convert.manifests import read_block as read_manifest
from jaxboost.convert.part_file import DTYPES
from jaxboost.convert.part_file import fingerprint as fingerprint
from jaxboost.convert.placing import Placement, Quantize, first_device, placed, with_layer
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import FINAL_NORM
from jaxboost.errors import UserError
from jaxboost.models.families import LAYER_NORM, LlamaConfig
from jaxboost.models.frozen import Quantized

# (part's key in the manifest, name, array) -> the array that replaces it, of the same shape and dtype.
Change = Callable[[str, str, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Loaded layers.

    Attributes:
      manifest: of the block.
      config: of these layers.
      layers: the L layers used, in order.
      weights: name -> array stacked over the layers: (L, D), or (L, in, out) for linear maps, which may be quantized.
      final_norm: (D,); None if it was not loaded.
      final_norm_bias: (D,), of a LayerNorm that was loaded; else None.
      fingerprint: see `fingerprint_of`; of the weights as they are here, if they were changed.
    """

    manifest: Manifest
    config: LlamaConfig
    layers: tuple[int, ...]
    weights: Mapping[str, jax.Array | Quantized]
    final_norm: jax.Array | None
    fingerprint: str
    final_norm_bias: jax.Array | None = None

    def tree(self, placement: Placement | None = None) -> dict[str, Any]:
        """The nested dict that `frozen.split` gives for these layers. A norm that was not loaded changes no scale.

        Args:
          placement: of that norm, see `load_block`.
        """
        config, norms = self.config, {"final_norm": self.final_norm}
        if config.norm == LAYER_NORM:
            norms["final_norm_bias"] = self.final_norm_bias
        for name, norm in norms.items():
            if norm is None:
                scales_by_it = name == "final_norm" and not config.offset_norms
                plain = np.full(config.width, scales_by_it, np.float32)
                norms[name] = placed(plain, placement or first_device)
        return {"layers": dict(self.weights), **norms}


def fingerprint_of(manifest: Manifest, layers: tuple[int, ...] | None, final_norm: bool) -> str:
    """SHA-256 of the weights that are used, and of the constants that belong to them.

    Only the manifest is needed.

    Args:
      manifest: of the block.
      layers: in the order of use, None for all.
      final_norm: whether the final norm is used.

    Raises:
      UserError: the block does not hold them.
    """
    used = [str(layer) for layer in _checked_layers(manifest, layers)]
    if final_norm:
        _check_final_norm(manifest)
        used.append(FINAL_NORM)
    return _identity({key: manifest.sha256[key] for key in used}, config_of(manifest, layers))


def config_of(manifest: Manifest, layers: tuple[int, ...] | None) -> LlamaConfig:
    """The configuration of some layers of a block, None for all, in the order of use."""
    return manifest.config.chosen([manifest.layers.index(layer) for layer in _checked_layers(manifest, layers)])


def _identity(sha256: Mapping[str, str], config: LlamaConfig) -> str:
    constants = config.entries()
    # They change no result: more tokens are refused.
    constants.pop("window", None)
    constants.pop("rope_limit", None)
    # The digests of the first release have no such entry.
    if constants["rope_unsupported"] is None:
        del constants["rope_unsupported"]
    # The same weights with another eps or rope_base are another function.
    return joined_fingerprint(sha256, constants)


def joined_fingerprint(sha256: Mapping[str, str], constants: Mapping[str, Any]) -> str:
    """SHA-256 over the fingerprints of parts, in this order, and the constants that belong to their weights."""
    lines = [f"{key} {value}\n" for key, value in sha256.items()]
    lines.append(json.dumps(constants, sort_keys=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_block(
    path: str | os.PathLike,
    layers: tuple[int, ...] | None,
    *,
    final_norm: bool,
    placement: Placement | None = None,
    quantize: Quantize | None = None,
    change: Change | None = None,
) -> Block:
    """Loads layers of the block at `path`, each verified against the manifest.

    Args:
      path: folder of the block.
      layers: numbers of the layers, in the order of use; None for all.
      final_norm: whether to load the final norm too.
      placement: shape of an array of the result -> its sharding, which may split any axis of stacked weights but the
        first. Default: the first local device.
      quantize: quantizes linear maps, each as soon as it is read. Default: they stay as they are stored.
      change: replaces each array as it is read, and before it is quantized. Default: nothing is changed.

    Raises:
      UserError: the block is missing or altered, or does not hold these layers.
    """
    manifest = read_manifest(path)
    layers = _checked_layers(manifest, layers)
    identity = fingerprint_of(manifest, layers, final_norm)
    placement = placement or first_device
    weights: dict[str, jax.Array | Quantized] = {}
    changed: dict[str, str] = {}
    for position, layer in enumerate(layers):
        for name, array in _changed(path, manifest, str(layer), change, changed):
            convert = quantize if array.ndim == 2 else None
            weights[name] = with_layer(weights.get(name), array, position, len(layers), placement, convert)
    norms: dict[str, jax.Array] = {}
    if final_norm:
        parts = _changed(path, manifest, FINAL_NORM, change, changed)
        norms = {name: placed(array, placement) for name, array in parts}
    config = config_of(manifest, layers)
    identity = _identity(changed, config) if change else identity
    return Block(
        manifest=manifest,
        config=config,
        layers=layers,
        weights=weights,
        final_norm=norms.get("scale"),
        final_norm_bias=norms.get("bias"),
        fingerprint=identity,
    )


def arrays(path: str | os.PathLike, manifest: Manifest, key: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one part of the block at `path`; see `part_file.read`."""
    of_part = shapes.llama_part(manifest.config, key)
    return part_file.read(path, key, of_part, DTYPES[manifest.dtype], manifest.sha256[key])


def _changed(
    path: str | os.PathLike, manifest: Manifest, key: str, change: Change | None, sha256: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one part, changed if `change` is given; then `sha256` gets the part's fingerprint at the end."""
    if change is None:
        yield from arrays(path, manifest, key)
        return
    digest = part_file.RunningFingerprint()
    for name, array in arrays(path, manifest, key):
        new = change(key, name, array)
        digest.add(name, new)
        yield name, new
    sha256[key] = digest.value()


def _checked_layers(manifest: Manifest, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    if layers is None:
        return manifest.layers
    absent = [str(layer) for layer in layers if layer not in manifest.layers]
    if absent or not layers:
        held = ",".join(map(str, manifest.layers))
        problem = f"not layer {', '.join(absent)}" if absent else "and none of them was asked for"
        command = manifests.command_of_block(",".join(map(str, layers)) or "LAYERS", "DIR")
        raise UserError(
            f"the block from {manifest.source} holds the layers {held}, {problem}: convert what is needed with "
            f"`{command}`"
        )
    return tuple(layers)


def _check_final_norm(manifest: Manifest) -> None:
    if not manifest.final_norm:
        raise UserError(
            f"the block from {manifest.source} was converted without the final norm: convert again without "
            "--nofinal_norm, or do not ask for it"
        )

"""Converted vision encoders: the weights of an encoder and their manifest, read back and verified."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxboost.convert import part_file
from jaxboost.convert.manifests import EncoderManifest
from jaxboost.convert.manifests import read_encoder as read_manifest
from jaxboost.convert.placing import Placement, first_device, placed, with_layer
from jaxboost.convert.store import joined_fingerprint
from jaxboost.convert.tables import positions, shapes
from jaxboost.convert.tables.parts import EMBEDDING, NORM, POOL, WHOLE
from jaxboost.models.resnet import STATISTICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A loaded vision encoder.

    Attributes:
      manifest: of the encoder.
      weights: the nested dict that `frozen.split` gives for a frozen encoder.
      norm: the final LayerNorm, scale and bias (D,), {} if there is none. It is a part of a PooledViT, and not of other
        encoders.
      statistics: the nested dict of running statistics, {} for an encoder without batch norms.
      fingerprint: see `fingerprint_at`.
    """

    manifest: EncoderManifest
    weights: dict[str, Any]
    norm: dict[str, jax.Array]
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str


def fingerprint_at(path: str | os.PathLike) -> str:
    """SHA-256 that identifies the weights of the vision encoder at `path` and the constants that go with them.

    Only the manifest is read.

    Raises:
      UserError: see `read_manifest`.
    """
    return _fingerprint(read_manifest(path))


def load_encoder(path: str | os.PathLike, *, image_size: int, placement: Placement | None = None) -> Encoder:
    """Loads the vision encoder at `path`, each part verified against the manifest.

    Args:
      path: folder of the encoder.
      image_size: side of the images in pixels, a multiple of a ViT's patch; its positions are resized to it.
      placement: see `store.load_block`.

    Raises:
      UserError: the encoder is missing or altered.
    """
    manifest = read_manifest(path)
    placement = placement or first_device
    if manifest.family != shapes.VIT:
        return _load_whole(path, manifest, placement)
    depth, pooled = manifest.arguments["depth"], shapes.is_pooled(manifest.arguments)
    weights: dict[str, jax.Array] = {}
    for name, array in arrays(path, manifest, EMBEDDING):
        if name == "positions":
            side, first = image_size // manifest.arguments["patch"], 0 if pooled else 1
            array = positions.resize(array, side, manifest.resizing, first=first)
        weights[name] = placed(array, placement)
    for layer in range(depth - 1):
        for name, array in arrays(path, manifest, str(layer)):
            name = f"transformer.blocks.{name}"
            weights[name] = with_layer(weights.get(name), array, layer, depth - 1, placement)
    for name, array in arrays(path, manifest, str(depth - 1)):
        weights[f"transformer.last.{name}"] = placed(array, placement)
    norm = {name: placed(array, placement) for name, array in arrays(path, manifest, NORM)}
    if pooled:
        weights |= {f"{NORM}.{name}": array for name, array in norm.items()}
        weights |= {f"{POOL}.{name}": placed(array, placement) for name, array in arrays(path, manifest, POOL)}
    return Encoder(
        manifest=manifest, weights=unflatten_dict(weights, sep="."), norm=norm, fingerprint=_fingerprint(manifest)
    )


def _load_whole(path: str | os.PathLike, manifest: EncoderManifest, placement: Placement) -> Encoder:
    """Loads an encoder that was converted as one part."""
    trees: dict[str, dict[tuple[str | int, ...], jax.Array]] = {"weights": {}, "statistics": {}}
    for name, array in arrays(path, manifest, WHOLE):
        # Entries of lists have numbers as names.
        words = tuple(int(word) if word.isdigit() else word for word in name.split("."))
        trees["statistics" if words[-1] in STATISTICS else "weights"][words] = placed(array, placement)
    keys = shapes.keys_of(manifest.family, manifest.arguments)
    norm = {name: placed(array, placement) for name, array in arrays(path, manifest, NORM)} if NORM in keys else {}
    nested: dict[str, Any] = {kind: unflatten_dict(tree) for kind, tree in trees.items()}
    return Encoder(manifest=manifest, norm=norm, fingerprint=_fingerprint(manifest), **nested)


def arrays(path: str | os.PathLike, manifest: EncoderManifest, key: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one part of the vision encoder at `path`; see `part_file.read`."""
    of_part = shapes.parts_of(manifest.family, manifest.arguments, manifest.image_size)[key]
    return part_file.read(path, key, of_part, part_file.DTYPES[manifest.dtype], manifest.sha256[key])


def _fingerprint(manifest: EncoderManifest) -> str:
    keys = shapes.keys_of(manifest.family, manifest.arguments)
    constants = dict(manifest.arguments)
    # The digests of the first release have no such entry.
    if manifest.resizing != positions.BICUBIC:
        constants["resizing"] = manifest.resizing
    return joined_fingerprint({key: manifest.sha256[key] for key in keys}, constants)

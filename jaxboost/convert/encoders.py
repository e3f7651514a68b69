"""Converted vision encoders: the weights of `models.vit.ViT`, as one orbax checkpoint per part and a manifest."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxboost.convert import positions
from jaxboost.convert.encoder_layouts import EMBEDDING, NORM
from jaxboost.convert.encoder_names import part_shapes
from jaxboost.convert.manifests import EncoderManifest
from jaxboost.convert.manifests import read_encoder as read_manifest
from jaxboost.convert.placing import Placement, first_device, placed, with_layer
from jaxboost.convert.store import DTYPES, joined_fingerprint, restored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A restored vision encoder.

    Attributes:
      weights: the nested dict that `frozen.split` gives for a frozen ViT.
      norm: the final LayerNorm, which is no part of the ViT: scale and bias (D,).
      fingerprint: see `fingerprint_at`.
    """

    manifest: EncoderManifest
    weights: dict[str, Any]
    norm: dict[str, jax.Array]
    fingerprint: str


def fingerprint_at(path: str | os.PathLike) -> str:
    """SHA-256 that identifies the weights of the vision encoder at `path` and the constants that go with them.

    The manifest alone is read.

    Raises:
      UserError: see `read_manifest`.
    """
    return _fingerprint(read_manifest(path))


def load_encoder(path: str | os.PathLike, *, image_size: int, placement: Placement | None = None) -> Encoder:
    """Restores the vision encoder at `path`, each part verified against the manifest.

    Args:
      path: folder of the encoder.
      image_size: side of the images in pixels, a multiple of the patch; the positions are resized to it.
      placement: see `store.load_block`.

    Raises:
      UserError: if the encoder is missing or altered.
    """
    manifest = read_manifest(path)
    placement = placement or first_device
    shapes, depth = part_shapes(manifest.arguments, manifest.image_size), manifest.arguments["depth"]

    def arrays(key: str) -> Iterator[tuple[str, np.ndarray]]:
        return restored(path, key, shapes[key], DTYPES[manifest.dtype], manifest.sha256)

    weights: dict[str, jax.Array] = {}
    for name, array in arrays(EMBEDDING):
        if name == "positions":
            array = positions.resize(array, image_size // manifest.arguments["patch"], manifest.resizing)
        weights[name] = placed(array, placement)
    for layer in range(depth - 1):
        for name, array in arrays(str(layer)):
            name = f"transformer.blocks.{name}"
            weights[name] = with_layer(weights.get(name), array, layer, depth - 1, placement)
    for name, array in arrays(str(depth - 1)):
        weights[f"transformer.last.{name}"] = placed(array, placement)
    norm = {name: placed(array, placement) for name, array in arrays(NORM)}
    return Encoder(
        manifest=manifest, weights=unflatten_dict(weights, sep="."), norm=norm, fingerprint=_fingerprint(manifest)
    )


def _fingerprint(manifest: EncoderManifest) -> str:
    parts = {key: manifest.sha256[key] for key in part_shapes(manifest.arguments, manifest.image_size)}
    constants = dict(manifest.arguments)
    # Encoders of the first release do not know of any other.
    if manifest.resizing != positions.BICUBIC:
        constants["resizing"] = manifest.resizing
    return joined_fingerprint(parts, constants)

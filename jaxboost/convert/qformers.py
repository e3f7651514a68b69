"""Converted Q-Formers of BLIP-2: the weights of a `models.qformer.QFormer` and their manifest, read and verified."""

import os
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from jaxboost.convert import part_file
from jaxboost.convert.manifest_types import EncoderManifest, Manifest, QFormerManifest
from jaxboost.convert.manifests import other_norm
from jaxboost.convert.manifests import read_qformer as read_manifest
from jaxboost.convert.placing import Placement, placed
from jaxboost.convert.store import joined_fingerprint
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import FINAL_NORM, NORM, QFORMER
from jaxboost.errors import UserError


def fingerprint_at(path: str | os.PathLike) -> str:
    """SHA-256 that identifies the weights of the Q-Former at `path` and the constants that go with them.

    Only the manifest is read.

    Raises:
      UserError: see `read_manifest`.
    """
    manifest = read_manifest(path)
    return joined_fingerprint(manifest.sha256, manifest.arguments)


def check_parts(
    path: str | os.PathLike, manifest: QFormerManifest, encoder: EncoderManifest | None, block: Manifest | None
) -> None:
    """Raises UserError if an encoder or an LLM's block does not belong to a Q-Former.

    Args:
      path: folder of the Q-Former.
      manifest: of the Q-Former.
      encoder: manifest of the encoder; None: it is random.
      block: manifest of the block; None: it is random.
    """
    parts: tuple[tuple[str, str, EncoderManifest | Manifest | None], ...] = (
        ("encoder", NORM, encoder),
        ("block", FINAL_NORM, block),
    )
    for name, key, part in parts:
        if part is not None and (found := other_norm(part, key, manifest.norms[name])):
            raise UserError(
                f"the Q-Former at {path} ({manifest.source}) does not belong to the {name} of {part.source}, which"
                f" {found}: convert both from the same BLIP-2"
            )


def load_weights(path: str | os.PathLike, placement: Placement) -> dict[str, Any]:
    """The nested dict that `frozen.split` gives for the `QFormer` at `path`; see `encoders.load_encoder`."""
    manifest = read_manifest(path)
    arrays = part_file.read(
        path,
        QFORMER,
        shapes.qformer(manifest.arguments),
        part_file.DTYPES[manifest.dtype],
        manifest.sha256[QFORMER],
    )
    found: dict[tuple[str | int, ...], jax.Array] = {}
    for name, array in arrays:
        # Entries of lists have numbers as names.
        found[tuple(int(word) if word.isdigit() else word for word in name.split("."))] = placed(array, placement)
    return unflatten_dict(found)

"""Converted text encoders of CLIP: the class embeddings, the weights of `models.text.TextEncoder`, and their manifest.

Everything is read back and verified.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxboost.convert import encoders, part_file
from jaxboost.convert.manifests import TextManifest, other_norm
from jaxboost.convert.manifests import read_text as read_manifest
from jaxboost.convert.placing import Placement, placed, with_layer
from jaxboost.convert.store import joined_fingerprint
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import CLASSES, NORM, PROMPTS, TEXT_WEIGHTS
from jaxboost.errors import LISTED, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """What the text encoder made of the classes of a task, and what images need beside it.

    Attributes:
      embeddings: of the prompts of each class, of length 1, (C, D).
      names: embeddings of the tokens of each class name, (C, L, W); zeros after the end.
      ends: int32 (C,), the place of the token that ends it.
      projection: of the vision encoder's normed CLS token, (V, D).
      scale: of the cosines.
    """

    embeddings: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    projection: np.ndarray
    scale: float


def fingerprint_at(path: str | os.PathLike, *, prompts: bool) -> str:
    """SHA-256 that identifies the text encoder at `path`, and what belongs to it.

    Only the manifest is read.

    Args:
      path: folder of the text encoder.
      prompts: whether the prompts' embeddings count. torch computed them, so they may differ between machines; CoOp
        does not read them.

    Raises:
      UserError: see `read_manifest`.
    """
    manifest = read_manifest(path)
    constants = dict(manifest.arguments) | {"classes": [(each.name, each.end) for each in manifest.classes]}
    parts = {key: sha256 for key, sha256 in sorted(manifest.sha256.items()) if prompts or key != PROMPTS}
    return joined_fingerprint(parts, constants)


def load_classes(path: str | os.PathLike, classes: Sequence[str]) -> ClassTexts:
    """Loads what the text encoder at `path` made of the classes of a task.

    Args:
      path: folder of the text encoder.
      classes: names, in the order of the task.

    Raises:
      UserError: the folder is missing or altered, or has prompts for other classes.
    """
    manifest = read_manifest(path)
    check_classes(path, manifest, classes)
    found = {name: np.array(array) for key in (CLASSES, PROMPTS) for name, array in _arrays(path, manifest, key)}
    rows = [manifest.names.index(name) for name in classes]
    return ClassTexts(
        embeddings=found["embeddings"][rows],
        names=found["names"][rows],
        ends=np.array([manifest.classes[row].end for row in rows], np.int32),
        projection=found["projection"],
        scale=float(found["scale"][0]),
    )


def load_weights(path: str | os.PathLike, placement: Placement) -> dict[str, Any]:
    """The nested dict that `frozen.split` gives for the frozen `TextEncoder` at `path`; see `encoders.load_encoder`."""
    manifest = read_manifest(path)
    depth = manifest.arguments["depth"]
    weights = {name: placed(array, placement) for name, array in _arrays(path, manifest, TEXT_WEIGHTS)}
    for layer in range(depth - 1):
        for name, array in _arrays(path, manifest, str(layer)):
            name = f"transformer.blocks.{name}"
            weights[name] = with_layer(weights.get(name), array, layer, depth - 1, placement)
    for name, array in _arrays(path, manifest, str(depth - 1)):
        weights[f"transformer.last.{name}"] = placed(array, placement)
    return unflatten_dict(weights, sep=".")


def check_classes(path: str | os.PathLike, manifest: TextManifest, classes: Sequence[str]) -> None:
    """Raises UserError if the prompts of a text encoder are not for exactly these classes."""
    problems = []
    for names, what in (
        ([name for name in classes if name not in manifest.names], "has no prompt for the class"),
        ([name for name in manifest.names if name not in classes], "has prompts for the unknown class"),
    ):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            problems.append(f"{what} {', '.join(map(repr, names[:LISTED]))}{more}")
    if problems:
        raise UserError(
            f"the text encoder at {path} {', and it '.join(problems)}: the data set's classes are"
            f" {', '.join(map(repr, classes[:LISTED]))}{'' if len(classes) <= LISTED else ', ...'}: convert again with"
            " prompts for these"
        )


def check_vision(path: str | os.PathLike, vision: str | os.PathLike, *, dtype: str) -> None:
    """Raises UserError if a vision encoder does not belong to a text encoder.

    Args:
      path: folder of the text encoder.
      vision: folder of the vision encoder; it must be of the same checkpoint, and not rounded more than `dtype`.
      dtype: of the computation.
    """
    manifest, other = read_manifest(path), encoders.read_manifest(vision)
    width = other.arguments["width"]
    found = f"is of width {width}, not {manifest.vision_width}" if width != manifest.vision_width else ""
    if found := found or other_norm(other, NORM, manifest.vision_norm):
        raise UserError(
            f"the text encoder at {path} ({manifest.source}) does not belong to the vision encoder at {vision}"
            f" ({other.source}), which {found}: convert both from the same checkpoint"
        )
    if (other.dtype, dtype) == ("bfloat16", "float32"):
        raise UserError(
            f"the vision encoder at {vision} ({other.source}) was rounded to bfloat16, and model.dtype=float32 asks for"
            " more: convert it again with --dtype float32 into another folder, or set model.dtype=bfloat16"
        )


def _arrays(path: str | os.PathLike, manifest: TextManifest, key: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one part of the text encoder at `path`; see `part_file.read`."""
    of_part = shapes.text_folder(manifest)[key]
    return part_file.read(path, key, of_part, part_file.DTYPES[manifest.dtype], manifest.sha256[key])

"""Converted questions: what an LLM has of the tokens of a question and its answers, read back and verified."""

import os

import numpy as np

from jaxboost.convert import part_file
from jaxboost.convert.manifest_types import Manifest, QuestionManifest
from jaxboost.convert.manifests import other_norm
from jaxboost.convert.manifests import read_question as read_manifest
from jaxboost.convert.store import joined_fingerprint
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import FINAL_NORM, QUESTION
from jaxboost.errors import LISTED, UserError


def fingerprint_at(path: str | os.PathLike) -> str:
    """SHA-256 that identifies the question at `path`: its rows, the place of the image, and the order of the answers.

    Only the manifest is read.

    Raises:
      UserError: see `read_manifest`.
    """
    manifest = read_manifest(path)
    constants = {"place": manifest.place, "cap": manifest.cap}
    return joined_fingerprint(dict(manifest.sha256), constants)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights of a `models.question.Question` in float32.

    They are tokens (T, D), answers (C, D), bias (C,), and positions (P, D) if the LLM has learned ones.

    Raises:
      UserError: the folder is missing or altered.
    """
    manifest = read_manifest(path)
    of_part = shapes.question_part(
        tokens=len(manifest.tokens),
        answers=len(manifest.answers),
        width=manifest.width,
        positions=manifest.positions,
    )
    read = part_file.read(path, QUESTION, of_part, part_file.DTYPES[manifest.dtype], manifest.sha256[QUESTION])
    return {name: np.array(array) for name, array in read}


def check_classes(path: str | os.PathLike, manifest: QuestionManifest, classes: tuple[str, ...]) -> None:
    """Raises UserError if a question has not one answer for each class."""
    if len(manifest.answers) != len(classes):
        answers = ", ".join(repr(each.text) for each in manifest.answers[:LISTED])
        raise UserError(
            f"the question at {path} has {len(manifest.answers)} answers ({answers}), and the data set has"
            f" {len(classes)} classes ({', '.join(map(repr, classes[:LISTED]))}): convert it again with an answer for"
            " each, in this order"
        )


def check_block(path: str | os.PathLike, manifest: QuestionManifest, block: Manifest | None, width: int) -> None:
    """Raises UserError if a question does not belong to the LLM of a block.

    Args:
      path: folder of the question.
      manifest: of the question.
      block: manifest of the block; None: it is random, or missing.
      width: of the LLM's layers.
    """
    found, source = "", "the LLM" if block is None else f"the block of {block.source}"
    if width != manifest.width:
        found = f"is {width} wide, not {manifest.width}"
    elif block is not None:
        found = other_norm(block, FINAL_NORM, manifest.norm)
    if found:
        raise UserError(
            f"the question at {path} ({manifest.source}) does not belong to {source}, which {found}: convert both from"
            " the same checkpoint"
        )

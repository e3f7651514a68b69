"""The file of a fitted classifier: its arrays, without pickled objects."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxboost import io
from jaxboost.baselines.classifiers import CLASSIFIERS
from jaxboost.baselines.problem import Classifier
from jaxboost.data.readers.npz import open_npz, write_npz
from jaxboost.errors import UserError

FILE = "classifier.npz"
_ABOUT = "about"


def save(folder: pathlib.Path, classifier: Classifier, *, channels: int) -> str:
    """Writes the classifier to `folder`, complete or not at all.

    Args:
      folder: of the run.
      classifier: fitted.
      channels: of the images that it was fitted to.

    Returns:
      The SHA-256 of the file.
    """
    arrays = classifier.arrays()
    about = json.dumps({"arrays": sorted(arrays), "channels": channels})
    write_npz(folder / FILE, {_ABOUT: np.array(about), **arrays})
    return io.digest_of(folder / FILE)


def load(
    folder: pathlib.Path, *, kind: str, task: str, classes: int, hyper: Mapping[str, Any], sha256: str
) -> tuple[Classifier, int]:
    """Reads the classifier of a run.

    Args:
      folder: of the run.
      kind: a key of CLASSIFIERS.
      task, classes, hyper: see `Classifier.restore`.
      sha256: of the file, from result.json.

    Returns:
      The classifier, and the channels of the images that it was fitted to.

    Raises:
      UserError: the file is missing or altered, or the classifier cannot be made here.
    """
    path, fix = folder / FILE, "bring it back from a backup, or remove result.json and run the same command again"
    if not path.is_file():
        raise UserError(f"{path}, the fitted classifier, is missing: {fix}")
    if io.digest_of(path) != sha256:
        raise UserError(f"{path} was altered, its checksum does not match that in result.json: {fix}")
    about = json.loads(str(open_npz(path, [_ABOUT])[_ABOUT]))
    arrays = open_npz(path, about["arrays"])
    try:
        restored = CLASSIFIERS[kind].restore(arrays, task=task, classes=classes, hyper=hyper)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not fit {kind} with {dict(hyper)}, which config.json and result.json name: one of these files"
            f" was altered: {fix}"
        ) from error
    return restored, about["channels"]

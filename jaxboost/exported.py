"""Predicts with an exported model: it needs jax, numpy, safetensors and the readers of files, no model and no training.

An export is a folder with three things:

* export.json: classes, preparation of the images, threshold, what it was made of, and the digests of the other files.
* weights.safetensors, or several of its kind: all weights, by the names that the program knows them by.
* program.bin: a StableHLO program as `jax.export` serialises it, (weights by name, images uint8 (B, S, S, 3) or
  (B, S, S, S, 1)) -> probabilities float32 (B, classes).
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors
from tqdm import tqdm

from jaxboost.data.fitting import fitted
from jaxboost.data.inputs import Preparation
from jaxboost.errors import UserError
from jaxboost.predictions import Labels, threshold_from_json

DESCRIPTION = "export.json"
PROGRAM = "program.bin"
FORMAT = 1
CHANNELS = {2: 3, 3: 1}  # spatial dimensions -> channels of the program's images


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A model that can be asked for probabilities.

    Attributes:
      labels, preparation: what its outputs mean, and how its inputs are made.
      weights: by name, on all devices.
      program: (weights, images of a whole batch) -> probabilities.
      batch_size: that it was evaluated with.
      fixed_batch: it takes this one alone.
      by_batch: sharding of the images.
    """

    labels: Labels
    preparation: Preparation
    weights: dict[str, jax.Array]
    program: Callable[[dict[str, jax.Array], jax.Array], jax.Array]
    batch_size: int
    fixed_batch: bool
    by_batch: jax.NamedSharding

    def probabilities(self, images: np.ndarray, *, batch_size: int = 0) -> np.ndarray:
        """(n, classes) of uint8 images (n, S, S, C) or volumes (n, S, S, S, 1) as `inputs.read` gives them.

        Args:
          batch_size: images at once, rounded up to a multiple of the devices; 0: as it was evaluated.

        Raises:
          UserError: a batch size that the program does not take.
        """
        size = batch_size or self.batch_size
        if self.fixed_batch and size != self.batch_size:
            raise UserError(f"--batch_size {size}: the exported program takes {self.batch_size} alone: leave it out")
        devices = self.by_batch.mesh.size
        size = -(-size // devices) * devices
        found = []
        for start in tqdm(range(0, len(images), size), desc="predicting", unit="batch", disable=None):
            batch = self._prepared(images[start : start + size], size)
            scores = self.program(self.weights, jax.device_put(batch, self.by_batch))
            found.append(np.asarray(scores)[: len(images) - start])
        return np.concatenate(found)

    def _prepared(self, images: np.ndarray, size: int) -> np.ndarray:
        """A whole batch at the model's size, with zeros after the images."""
        preparation = self.preparation
        side, channels = preparation.image_size, CHANNELS[preparation.ndim]
        batch = np.zeros((size, *[side] * preparation.ndim, channels), np.uint8)
        for place, image in zip(batch, images, strict=False):
            place[...] = fitted(image, side, preparation.resize)
        return batch


def is_export(folder: pathlib.Path) -> bool:
    """Whether `folder` says that it is an export."""
    return (folder / DESCRIPTION).is_file()


def load(folder: pathlib.Path) -> ExportedModel:
    """The exported model in `folder`, its weights on all local devices.

    Raises:
      UserError: it is no export, was made for other platforms or by a later version, or its files are missing or
        altered.
    """
    described = _read_description(folder)
    _check_files(folder, described["files"])
    platform = jax.default_backend()
    platform = "cuda" if platform == "gpu" else platform
    if platform not in described["platforms"]:
        raise UserError(
            f"{folder} was exported for {', '.join(described['platforms'])}, not for {platform}: set JAX_PLATFORMS=cpu"
        )
    fixed = described["images"]["batch"]
    devices = jax.local_devices()
    # A program of one batch size may not divide over the devices.
    if fixed and fixed % len(devices):
        devices = devices[:1]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    program = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    weights: dict[str, jax.Array] = {}
    for name in described["files"]:
        if name.endswith(".safetensors"):
            with safetensors.safe_open(folder / name, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118  it is no dict
                    weights[key] = jax.device_put(file.get_tensor(key), jax.NamedSharding(mesh, jax.P()))
    preparation = described["preparation"]
    return ExportedModel(
        labels=Labels(
            classes=tuple(described["classes"]),
            task=described["task"],
            threshold=threshold_from_json(described["threshold"]),
        ),
        preparation=Preparation(**preparation | {"window": tuple(preparation["window"])}),
        weights=weights,
        program=jax.jit(program.call),
        batch_size=described["batch_size"],
        fixed_batch=fixed is not None,
        by_batch=jax.NamedSharding(mesh, jax.P("data")),
    )


def digest_of(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_description(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} is no export: it has no {DESCRIPTION}")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        version = described["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}): export the run again") from error
    if version != FORMAT:
        raise UserError(f"{path} has the format {version}, this jaxboost reads {FORMAT}: export the run again with it")
    return described


def _check_files(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Raises UserError where a file is not the one that was exported."""
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: export the run again")
        if digest_of(path) != digest:
            raise UserError(f"{path} was altered since it was exported: export the run again")

"""Predicts with an exported model. It needs jax and the file readers, but not the code of models and training.

An export is a folder with these files:

* export.json: classes, preprocessing of the images, threshold, provenance, and the digests of the other files.
* weights.safetensors, or weights-00001-of-00002.safetensors and so on: all weights by name.
* program.bin: a StableHLO program in the format of `jax.export`: (weights by name, images uint8 (B, S, S, 3) or volumes
  (B, S, S, S, 1)[, features of clinical columns float32 (B, F)]) -> probabilities float32 (B, classes).
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.export
import numpy as np
import safetensors
from pydantic import AfterValidator, BeforeValidator, Field
from tqdm import tqdm

from jaxboost import io, schema
from jaxboost.data import columns as clinical
from jaxboost.data.columns import Column
from jaxboost.data.dataset import MappedRows
from jaxboost.data.pipeline.resize import fitted
from jaxboost.data.sources.folder.inputs import Preprocessing
from jaxboost.errors import UserError
from jaxboost.evaluation import evaluate
from jaxboost.evaluation.prediction_table import Labels
from jaxboost.inference import images as given_images
from jaxboost.tasks import TaskName

DESCRIPTION = "export.json"
PROGRAM = "program.bin"
# Format 1 has the entry "preparation" instead of "preprocessing", and format 2 has no clinical columns.
FORMAT, WITHOUT_COLUMNS = 3, 2
MAX_SIDE = 8192
CHANNELS = {2: 3, 3: 1}  # spatial dimensions -> channels of the program's images


_Text = Annotated[str, Field(max_length=10_000)]
_Batch = Annotated[int, Field(ge=1, le=2**16)]
# Only these names are accepted, so no file outside of the folder is read.
_File = Annotated[str, Field(pattern=r"^(program\.bin|weights(-\d{5}-of-\d{5})?\.safetensors)$")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """The images that the program takes. `batch` is the fixed batch size; None: any batch size."""

    batch: _Batch | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """The threshold of a binary task; null stands for infinity."""

    value: Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]


def _bounded(found: Preprocessing) -> Preprocessing:
    bounds = {
        "ndim": (2, 3),
        "size": (1, MAX_SIDE),
        "spacing": (0, 1000),
        "image_size": (1, MAX_SIDE),
        "resize": (0, MAX_SIDE),
        "max_pixels": (1, 2**40),
        "max_voxels": (1, 2**40),
    }
    for name, (least, most) in bounds.items():
        if not least <= (value := getattr(found, name)) <= most:
            raise ValueError(f"{name} is {value}, not {least} to {most}")
    if len(found.window) > 2:
        raise ValueError(f"window has {len(found.window)} numbers, not 2")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The entries of export.json that a prediction reads."""

    format: Literal[2, 3]
    task: TaskName
    classes: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=10_000)]
    threshold: Threshold | None
    # The earliest versions knew no patients.
    unit: Literal["image", "patient"] = "image"
    preprocessing: Annotated[Preprocessing, AfterValidator(_bounded)]
    columns: Annotated[tuple[Column, ...], Field(max_length=1000)] = ()
    images: Images
    batch_size: _Batch
    platforms: Annotated[tuple[_Text, ...], Field(max_length=10)]
    files: Annotated[dict[_File, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]], Field(max_length=10_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An exported model, created by `load`.

    Attributes:
      labels: task, class names and threshold: what the outputs mean.
      unit: what the run counted, see `eval.unit`.
      preprocessing: how images are read and resized.
      columns: the clinical columns that the model reads; () if it reads none.
      weights: weights by name, on all devices.
      program: (weights, images of a whole batch[, features of their columns]) -> probabilities.
      batch_size: the batch size of the run's evaluation.
      fixed_batch: whether the program takes only this batch size.
      by_batch: sharding of the images.
    """

    labels: Labels
    unit: Literal["image", "patient"]
    preprocessing: Preprocessing
    columns: tuple[Column, ...] = ()
    weights: dict[str, jax.Array]
    program: Callable[..., jax.Array]
    batch_size: int
    fixed_batch: bool
    by_batch: jax.NamedSharding

    def predict(
        self, images: np.ndarray, *, columns: Mapping[str, Any] | None = None, batch_size: int = 0
    ) -> np.ndarray:
        """Probabilities float32 (n, classes); see `open_run.FinishedRun.predict`.

        Raises:
          UserError: images of another type or shape, columns that are missing or wrong, or a batch size that the
            program does not take.
        """
        images = given_images.checked(images, self.preprocessing, batch_size)
        values = clinical.of_values(self.columns, columns, len(images))
        size = batch_size or self.batch_size
        if self.fixed_batch and size != self.batch_size:
            raise UserError(f"batch_size {size}: the exported program takes only {self.batch_size}: leave it out")
        devices = self.by_batch.mesh.size
        batches = self._batches(images, values, -(-size // devices) * devices)
        # The images first, then the columns, if there are any.
        return evaluate.run_batches(lambda batch: self.program(self.weights, *batch.values()), batches, self.by_batch)

    def _batches(
        self, images: np.ndarray | MappedRows, columns: np.ndarray | None, size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields full batches of resized images; the last batch is padded with zeros."""
        preprocessing = self.preprocessing
        side, channels = preprocessing.image_size, CHANNELS[preprocessing.ndim]
        for start in tqdm(range(0, len(images), size), desc="predicting", unit="batch", disable=None):
            part = images[start : start + size]
            batch = np.zeros((size, *[side] * preprocessing.ndim, channels), np.uint8)
            for target, image in zip(batch, part, strict=False):
                target[...] = fitted(image, side, preprocessing.resize)
            found = {"image": batch}
            if columns is not None:
                values = columns[start : start + size]
                found["columns"] = np.pad(values, ((0, size - len(values)), (0, 0)))
            yield found | {"mask": np.arange(size) < len(part)}


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` has the description of an export."""
    return os.path.isfile(io.user_path(folder) / DESCRIPTION)


def check_not_moved(folder: pathlib.Path, moved: Sequence[str]) -> None:
    """Raises UserError if `moved`, the new folders of frozen weights, is not empty for an export."""
    if moved:
        raise UserError(f"{folder} is an export, which contains its weights: leave --set (in Python: moved) out")


def load(folder: str | os.PathLike[str]) -> ExportedModel:
    """Loads the exported model in `folder`, with its weights on all local devices.

    Example::

      model = jaxboost.exported.load("MODEL")
      probabilities = model.predict(images)  # uint8, as the run was trained on -> (n, classes)

    Raises:
      UserError: the folder is not an export, it was made for other platforms or by a later version, or files are
        missing or altered.
    """
    folder = io.user_path(folder)
    described = read_description(folder)
    _check_files(folder, described.files)
    platform = jax.default_backend()
    platform = "cuda" if platform == "gpu" else platform
    if platform not in described.platforms:
        raise UserError(
            f"{folder} was exported for {', '.join(described.platforms)}, not for {platform}: set JAX_PLATFORMS=cpu"
        )
    fixed = described.images.batch
    devices = jax.local_devices()
    # A fixed batch size need not be a multiple of the number of devices.
    if fixed and fixed % len(devices):
        devices = devices[:1]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    program = _read_program(folder, described)
    weights = _read_weights(folder, described, program, jax.NamedSharding(mesh, jax.P()))
    return ExportedModel(
        labels=Labels(
            classes=described.classes,
            task=described.task,
            threshold=None if described.threshold is None else described.threshold.value,
        ),
        unit=described.unit,
        preprocessing=described.preprocessing,
        columns=described.columns,
        weights=weights,
        program=jax.jit(program.call),
        batch_size=described.batch_size,
        fixed_batch=fixed is not None,
        by_batch=jax.NamedSharding(mesh, jax.P("data")),
    )


def read_description(folder: pathlib.Path) -> Description:
    """Reads and checks export.json in `folder`.

    Raises:
      UserError: it is missing, damaged, or of another version.
    """
    path = folder / DESCRIPTION
    if not os.path.exists(path):
        raise UserError(f"{folder} is not an export: it has no {DESCRIPTION}")
    try:
        content = io.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): export the run again") from error
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is int and version > FORMAT:
        raise UserError(
            f"{path} has the format {version}, this jaxboost reads up to {FORMAT}: export the run again with it"
        )
    described = schema.parse(Description, _upgraded(content), where=str(path), fix="export the run again")
    # Earlier versions wrote no checksum.
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if "sha256" in content and content["sha256"] != io.json_sha256(rest):
        raise UserError(f"{path} was altered since it was exported, its checksum does not match: export the run again")
    return described


def _upgraded(content: Any) -> Any:
    """Converts the content of an export.json to the latest format."""
    if not isinstance(content, dict):
        return content
    if "unit" not in content and (unit := _recorded_unit(content)) is not None:
        content = content | {"unit": unit}
    if type(content.get("format")) is not int or content["format"] != 1:
        return content
    renamed = {"preprocessing" if name == "preparation" else name: value for name, value in content.items()}
    return renamed | {"format": WITHOUT_COLUMNS}


def _recorded_unit(content: Any) -> Any:
    """`eval.unit` of the run: earlier versions wrote it in the config alone. None if it is not there."""
    for name in ("provenance", "config", "eval", "unit"):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _check_files(folder: pathlib.Path, files: Mapping[str, str]) -> None:
    """Raises UserError if a file is not the one that was exported."""
    if PROGRAM not in files:
        raise UserError(f"{folder / DESCRIPTION} names no {PROGRAM}: export the run again")
    for name, digest in files.items():
        path = folder / name
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing: export the run again")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link to a file outside of the export: put the file itself there")
        if io.digest_of(path) != digest:
            raise UserError(f"{path} was altered since it was exported: export the run again")


def _read_program(folder: pathlib.Path, described: Description) -> jax.export.Exported:
    path = folder / PROGRAM
    try:
        program = jax.export.deserialize(bytearray(path.read_bytes()))
        (_, *inputs), _ = program.in_tree.unflatten(program.in_avals)
        images, scores = inputs[0].shape, program.out_avals[0].shape
    # jax parses the file: a damaged one raises nearly any error.
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read by this version of jax ({reason}): export the run again") from error
    size, ndim = described.preprocessing.image_size, described.preprocessing.ndim
    expected = (*[size] * ndim, CHANNELS[ndim])
    columns = [tuple(each.shape[1:]) for each in inputs[1:]]
    same_columns = columns == ([(clinical.width(described.columns),)] if described.columns else [])
    if tuple(images[1:]) != expected or scores[-1] != len(described.classes) or not same_columns:
        raise UserError(f"{path} is not the program that {DESCRIPTION} describes: export the run again")
    return program


def _read_weights(
    folder: pathlib.Path, described: Description, program: jax.export.Exported, replicated: jax.NamedSharding
) -> dict[str, jax.Array]:
    weights: dict[str, jax.Array] = {}
    for name in described.files:
        if name != PROGRAM:
            try:
                with safetensors.safe_open(folder / name, framework="numpy") as file:
                    for key in file.keys():  # noqa: SIM118  it is no dict
                        weights[key] = jax.device_put(file.get_tensor(key), replicated)
            except (safetensors.SafetensorError, TypeError, ValueError) as error:
                raise UserError(f"{folder / name} cannot be read ({error}): export the run again") from error
    wanted, *_ = program.in_tree.unflatten(program.in_avals)[0]
    if {key: (value.shape, value.dtype) for key, value in wanted.items()} != {
        key: (value.shape, value.dtype) for key, value in weights.items()
    }:
        raise UserError(f"{folder}: the weights do not match the program: export the run again")
    return weights

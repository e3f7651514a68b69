"""The images that are explained: given files, or a split of the run's own data set, with its worst errors first."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxboost.config import continuing
from jaxboost.data.dataset import SPLITS, MappedRows, Split
from jaxboost.data.pipeline.resize import fitted
from jaxboost.data.sources.folder import inputs
from jaxboost.data.walk import printable
from jaxboost.errors import UserError, check_choice
from jaxboost.inference import open_run, predict
from jaxboost.inference.baseline_run import BaselineRun
from jaxboost.inference.exported import ExportedModel
from jaxboost.inference.open_run import FinishedRun
from jaxboost.runs import cross_validation, datasets
from jaxboost.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Images, their names, and their labels where they are known.

    Attributes:
      names: of the files, or `test/0`.
      images: uint8 (n, S, S, C) or (n, S, S, S, 1), S the run's `data.size`; of a large split they stay on disk.
      labels: int64 (n, L), or None.
      columns: clinical columns, name -> cells (n,); None if the run reads none.
    """

    names: list[str]
    images: np.ndarray | MappedRows
    labels: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] | None = None

    def take(self, rows: np.ndarray) -> "Samples":
        """The samples `rows`, int (m,), in that order."""
        labels = None if self.labels is None else self.labels[rows]
        columns = None if self.columns is None else {name: cells[rows] for name, cells in self.columns.items()}
        names = [self.names[row] for row in rows]
        return Samples(names=names, images=self.images[rows], labels=labels, columns=columns)


def open_trained(folder: str | os.PathLike[str], moved: Sequence[str] = ()) -> FinishedRun:
    """Opens the finished run of a network; arguments and errors: see `open_run.open_run`.

    Raises:
      UserError: it is an export or the run of a baseline.
    """
    run = open_run.open_run(folder, moved)
    if isinstance(run, BaselineRun):
        raise UserError(f"{folder} is the run of a baseline: it has no trained network to explain")
    if isinstance(run, ExportedModel):
        raise UserError(f"{folder} is an export, whose inner values cannot be read: give the folder of the run itself")
    return run


def from_files(
    run: FinishedRun, files: Sequence[str], *, masks: str = "", table: str = "", skip_faulty: bool = False
) -> Samples:
    """Reads files as `jaxboost predict` does; arguments and errors: see `inputs.find` and `predict.read`."""
    found = inputs.find(files, run.preprocessing.ndim, skip_faulty=skip_faulty)
    kept, images, columns = predict.read(run, files, found, masks=masks, table=table, skip_faulty=skip_faulty)
    return Samples(names=[printable(path) for path in kept], images=images, columns=columns)


def from_split(run: FinishedRun, name: str, root: str = "") -> Samples:
    """A split of the data set that the run was trained on.

    Args:
      run: the run.
      name: "train", "val" or "test".
      root: the folder of the data, if it has moved.

    Raises:
      UserError: there is no such split; the data are missing, or are others than those of the training.
    """
    check_choice(name, SPLITS, "--split")
    config = full_config(run.result.config)
    if root:
        config.data.root = root
    if config.data.folds:
        folder = run.folder.absolute().parent
        file = folder / cross_validation.FOLDS
        dataset = datasets.fold_of(datasets.load(config), config, config.data.fold, file if file.exists() else None)
    else:
        dataset = datasets.own_splits(config, run.folder).load()
    known = run.result.digests
    found = datasets.fingerprint(dataset, config)
    if differing := [part for part, digest in found.items() if known[part] not in (None, digest)]:
        raise UserError(
            f"{config.data.root} has other {' and '.join(differing)} than {run.folder} was trained with: give the data"
            " of the run with --root, or files with --input"
        )
    if name not in dataset.splits:
        raise UserError(f"--split {name}: the run has none, it has {', '.join(dataset.splits)}")
    split: Split = dataset.splits[name].named(name)
    columns = None
    if run.columns and split.cells is not None:
        columns = dict(zip((column.name for column in run.columns), split.cells.T, strict=True))
    names = [str(each) for each in split.names]
    return Samples(names=names, images=split.images, labels=split.labels, columns=columns)


def worst(run: FinishedRun, samples: Samples, probabilities: np.ndarray, most: int) -> np.ndarray:
    """The rows of the wrongly predicted samples, the most wrong first, at most `most`: int (m,).

    How wrong: one minus the probability of the true class; in a multi-label task the largest difference between a
    label and its probability.
    """
    labels, task = samples.labels, TASKS[run.labels.task]
    assert labels is not None
    if task.multi_label:
        gap = np.abs(labels - probabilities).max(1)
    else:
        gap = 1 - probabilities[np.arange(len(labels)), labels[:, 0]]
    wrong = np.flatnonzero((task.decide(probabilities, run.labels.threshold) != labels).any(1))
    return wrong[np.argsort(-gap[wrong], kind="stable")][:most]


def full_config(content: Mapping[str, Any]) -> ConfigDict:
    """The config of a run from its result.json; fields that its version lacked are as in `continuing.ADDED`."""
    tree: dict[str, Any] = {}
    for name, value in {**continuing.ADDED, **continuing.flat(content)}.items():
        section, _, field = name.rpartition(".")
        holder = tree.setdefault(section, {}) if section else tree
        holder[field] = tuple(value) if isinstance(value, list) else value
    # A section of fields that are only added, such as one of the other system, does not belong to the config.
    return ConfigDict({name: value for name, value in tree.items() if name in content})


def check_alike(run: FinishedRun, other: FinishedRun) -> None:
    """Raises UserError if two runs do not read the same images in the same way, or have other classes.

    The clinical columns are read for the first run: the other may read fewer, and no further ones.
    """
    # The size of the model's input may differ: the maps are drawn over it.
    read = [dataclasses.asdict(each.preprocessing) | {"image_size": 0, "resize": 0} for each in (run, other)]
    differing = [f"{name} ({value} and {read[1][name]})" for name, value in read[0].items() if read[1][name] != value]
    if run.labels.classes != other.labels.classes:
        differing.append("classes")
    known = [column.name for column in run.columns]
    if further := [column.name for column in other.columns if column.name not in known]:
        differing.append(f"clinical columns ({', '.join(further)} only in {other.folder})")
    if differing:
        raise UserError(
            f"{run.folder} and {other.folder} differ in {', '.join(differing)}: compare runs on the same images"
        )


def inputs_of(run: FinishedRun, images: np.ndarray) -> list[np.ndarray]:
    """The images as the run's model reads them: resized and cropped, uint8 (S, S, C) or (S, S, S, 1)."""
    return [fitted(image, run.preprocessing.image_size, run.preprocessing.resize) for image in images]


def stem(name: str) -> str:
    """The last part of a name for a file's name: letters, digits, dashes and points, at most 40 characters."""
    kept = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in pathlib.PurePath(name).name)
    return kept.encode("ascii", "replace").decode().replace("?", "_")[:40]

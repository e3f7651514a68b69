"""Predictions as text: what a model's probabilities say, and the three tables of them."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jaxboost.data.dataset import Dataset
from jaxboost.data.walk import printable
from jaxboost.io import write_text
from jaxboost.tasks import TASKS

# The longest first line that `is_table` reads: more than the names of any classes need.
_MAX_HEADER = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What a model's outputs mean.

    Attributes:
      classes: names in the order of the outputs.
      task: a key of `tasks.TASKS`.
      threshold: of a binary task, where one was chosen: class 1 is predicted from this probability on (infinity:
        never). None: above .5, as in the figures of a run.
    """

    classes: tuple[str, ...]
    task: str
    threshold: float | None = None

    def predictions(self, probabilities: np.ndarray) -> list[str]:
        """The predicted class of each row of (n, classes); in a multi-label task all above .5, joined by "|"."""
        task = TASKS[self.task]
        return [task.text(labels, self.classes) for labels in task.decide(probabilities, self.threshold)]

    def table(self, files: Sequence[pathlib.Path], probabilities: np.ndarray) -> str:
        """CSV: file, the probability of each class, prediction, and the threshold where there is one.

        Names that are not plain UTF-8 are escaped, see `walk.printable`.
        """
        ending = [] if self.threshold is None else [_number(self.threshold)]
        header = ["file", *self.classes, "prediction", *(["threshold"] if ending else [])]
        predicted = self.predictions(probabilities)
        return _csv(
            header,
            (
                [printable(file), *map(_number, row), answer, *ending]
                for file, row, answer in zip(files, probabilities, predicted, strict=True)
            ),
        )


def is_table(path: pathlib.Path) -> bool:
    """Whether a file is a table as `Labels.table` gives it, by its first line."""
    with path.open("rb") as file:
        header = next(csv.reader([file.readline(_MAX_HEADER).decode("utf-8")]), [])
    return header[:1] == ["file"] and "prediction" in header[-2:]


def named_table(dataset: Dataset, split: str, probabilities: np.ndarray) -> str:
    """CSV of a split whose samples have names: file, patient, label, and the probability of each class."""
    members, classes, task = dataset.splits[split], dataset.info.classes, TASKS[dataset.info.task]
    names = np.asarray(members.names)
    groups = names if members.groups is None else members.groups
    rows = zip(names, groups, members.labels, probabilities, strict=True)
    return _csv(
        ["file", "patient_id", "label", *classes],
        ([name, group, task.text(labels, classes), *map(_number, row)] for name, group, labels, row in rows),
    )


def write_medmnist(
    folder: pathlib.Path, scores: np.ndarray, *, name: str, size: int, split: str, auc: float, acc: float, run: str
) -> pathlib.Path:
    """Writes MedMNIST's standard file: an index, then a probability per class, for each example.

    Its name, `{name}{_size}_{split}_[AUC]x_[ACC]y@{run}.csv`, and its content are those that
    `medmnist.Evaluator.parse_and_evaluate` reads.

    Args:
      folder: is made where it is missing.
      scores: probabilities (n, classes).
      name: the data set's flag.
      size: edge length in pixels; the name has none for 28.
      split: "val" or "test", for the file's name.
      auc: for the file's name.
      acc: for the file's name.
      run: for the file's name, such as "seed0".

    Returns:
      The file's path.
    """
    size_flag = "" if size == 28 else f"_{size}"
    path = folder / f"{name}{size_flag}_{split}_[AUC]{auc:.3f}_[ACC]{acc:.3f}@{run}.csv"
    text = io.StringIO()
    np.savetxt(
        text, np.column_stack([np.arange(len(scores)), scores]), delimiter=",", fmt=["%d"] + ["%.9g"] * scores.shape[1]
    )
    write_text(path, text.getvalue())
    return path


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _number(value: float) -> str:
    # Nine digits give back the same float32.
    return f"{value:.9g}"

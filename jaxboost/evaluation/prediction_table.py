"""Predictions as text: predicted classes, and the three kinds of prediction tables."""

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

# The longest first line that `is_table` reads; class names need less.
_MAX_HEADER = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Task, class names and threshold: what the outputs of a model mean.

    Attributes:
      classes: class names in the order of the outputs.
      task: a key of `tasks.TASKS`.
      threshold: threshold of a binary task: class 1 is predicted if its probability is at least this; infinity: never.
        None: above .5, as in the metrics of a run.
    """

    classes: tuple[str, ...]
    task: str
    threshold: float | None = None

    def predictions(self, probabilities: np.ndarray) -> list[str]:
        """The predicted class of each row of (n, classes); in a multi-label task all above .5, joined by "|"."""
        task = TASKS[self.task]
        return [task.text(labels, self.classes) for labels in task.decide(probabilities, self.threshold)]

    def table(self, files: Sequence[pathlib.Path], probabilities: np.ndarray) -> str:
        """Returns a CSV table: file, probability of each class, prediction, and the threshold if there is one.

        File names that are not plain UTF-8 are escaped, see `walk.printable`.
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

    def patient_table(self, patients: Sequence[str], probabilities: np.ndarray) -> str:
        """Returns a CSV table of patients: patient_id, their number of images, and then as `table`.

        Args:
          patients: the patient of each image; rows are in the order of their first images.
          probabilities: of the images, (n, classes); those of a patient are averaged.
        """
        order = {name: number for number, name in enumerate(dict.fromkeys(patients))}
        numbers = np.array([order[name] for name in patients])
        sums, counts = np.zeros((len(order), len(self.classes))), np.bincount(numbers)
        np.add.at(sums, numbers, probabilities)
        means = sums / counts[:, np.newaxis]
        ending = [] if self.threshold is None else [_number(self.threshold)]
        header = ["patient_id", "images", *self.classes, "prediction", *(["threshold"] if ending else [])]
        rows = zip(order, counts.tolist(), means, self.predictions(means), strict=True)
        return _csv(header, ([name, count, *map(_number, row), answer, *ending] for name, count, row, answer in rows))


def is_table(path: pathlib.Path) -> bool:
    """Whether a file is a table of `Labels.table` or `Labels.patient_table`, judged by its first line."""
    with path.open("rb") as file:
        header = next(csv.reader([file.readline(_MAX_HEADER).decode("utf-8")]), [])
    return header[:1] in (["file"], ["patient_id"]) and "prediction" in header[-2:]


def named_table(dataset: Dataset, split: str, probabilities: np.ndarray) -> str:
    """Returns the CSV table of a split: file, patient, label, probability of each class; see `Split.named`."""
    members, classes, task = dataset.splits[split].named(split), dataset.info.classes, TASKS[dataset.info.task]
    rows = zip(np.asarray(members.names), members.patients, members.labels, probabilities, strict=True)
    return _csv(
        ["file", "patient_id", "label", *classes],
        ([name, group, task.text(labels, classes), *map(_number, row)] for name, group, labels, row in rows),
    )


def write_medmnist(
    folder: pathlib.Path, scores: np.ndarray, *, name: str, size: int, split: str, auc: float, acc: float, run: str
) -> pathlib.Path:
    """Writes MedMNIST's standard file: for each example an index and the probability of each class.

    Its name is `{name}{_size}_{split}_[AUC]x_[ACC]y@{run}.csv`. `medmnist.Evaluator.parse_and_evaluate` reads it.

    Args:
      folder: folder of the file; it is created if it is missing.
      scores: probabilities (n, classes).
      name: the data set's flag.
      size: side in pixels; the file name leaves out 28.
      split: "val" or "test", for the file name.
      auc: AUC of the split, for the file name.
      acc: ACC of the split, for the file name.
      run: name of the run, for the file name, such as "seed0".

    Returns:
      The path of the file.
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
    # Nine digits identify a float32 exactly.
    return f"{value:.9g}"

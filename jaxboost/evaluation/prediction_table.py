"""What a model's probabilities say: the prediction of each file, and the table of them."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxboost.data.dataset import MULTI_LABEL
from jaxboost.data.sources.folder.inputs import Preprocessing
from jaxboost.data.walk import printable
from jaxboost.io import write_text

BINARY = "binary-class"
# Of a table's first line: more than the names of any classes take.
_MAX_HEADER = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What a model's outputs mean.

    Attributes:
      classes: their names, in the order of the outputs.
      task: MedMNIST's name.
      threshold: of a binary task where one was picked: the second class is predicted from it on (infinity: never).
        None for .5, as the figures of a run have it: above it.
    """

    classes: tuple[str, ...]
    task: str
    threshold: float | None = None

    def predictions(self, probabilities: np.ndarray) -> list[str]:
        """The predicted class of each row of (n, classes); of a multi-label task all above .5, joined by "|"."""
        if self.task == MULTI_LABEL:
            return ["|".join(self.classes[number] for number in np.flatnonzero(row > 0.5)) for row in probabilities]
        if self.task == BINARY:
            score = probabilities[:, 1]
            positive = score > 0.5 if self.threshold is None else score >= self.threshold
            return [self.classes[int(answer)] for answer in positive]
        return [self.classes[number] for number in probabilities.argmax(1)]

    def table(self, files: Sequence[pathlib.Path], probabilities: np.ndarray) -> str:
        """CSV: file, a probability for each class, prediction, and the threshold where there is one.

        Names are written as `walk.printable` has them.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        ending = [] if self.threshold is None else [f"{self.threshold:.9g}"]
        writer.writerow(["file", *self.classes, "prediction", *(["threshold"] if ending else [])])
        for file, row, answer in zip(files, probabilities, self.predictions(probabilities), strict=True):
            writer.writerow([printable(file), *(f"{value:.9g}" for value in row), answer, *ending])
        return text.getvalue()


class Model(Protocol):
    """What predicts: a finished run, or an export.

    Attributes:
      labels: what its outputs mean.
      preparation: how its inputs are made.
    """

    @property
    def labels(self) -> Labels: ...

    @property
    def preparation(self) -> Preprocessing: ...

    def probabilities(self, images: np.ndarray, *, batch_size: int = 0) -> np.ndarray:
        """(n, classes) of images as `inputs.read` gives them; batch_size: at once, 0 for the model's own."""


def threshold_from_json(found: dict[str, object] | None) -> float | None:
    """The threshold of result.json's entry of this name, None where it has none; JSON has no infinity but null."""
    if found is None:
        return None
    return math.inf if found["value"] is None else float(found["value"])


def write(path: pathlib.Path, text: str) -> None:
    """Writes the file, whole or not at all."""
    write_text(path, text)


def is_table(path: pathlib.Path) -> bool:
    """Whether a file is a table as `Labels.table` gives it, by its first line."""
    with path.open("rb") as file:
        header = next(csv.reader([file.readline(_MAX_HEADER).decode("utf-8")]), [])
    return header[:1] == ["file"] and "prediction" in header[-2:]

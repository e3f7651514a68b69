"""What a baseline's classifier is fitted to, and what all classifiers share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxboost.convert.text_encoders import ClassTexts
from jaxboost.tasks import TASKS

Arrays = dict[str, np.ndarray]
Hyper = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a classifier is fitted to.

    Attributes:
      features, labels: of the train split, (n, F) and int64 (n, L).
      val_features, val_labels: of the validation split, which boosting uses to stop early.
      task: a key of `tasks.TASKS`.
      classes: C, number of classes.
      seed: of the classifier's random numbers.
      texts: of the classes, for zero-shot classification.
    """

    features: np.ndarray
    labels: np.ndarray
    val_features: np.ndarray
    val_labels: np.ndarray
    task: str
    classes: int
    seed: int
    texts: ClassTexts | None = None


class Classifier(Protocol):
    """A fitted classifier.

    Attributes:
      numbers: how many numbers were fitted.
    """

    numbers: int

    @staticmethod
    def grid(samples: int) -> Sequence[dict[str, Any]]:
        """The hyper-parameters to try with so many training samples; of equally good ones the first is taken."""
        ...

    @classmethod
    def fit(cls, data: Data, **hyper: Any) -> "Classifier":
        """Fits the classifier with hyper-parameters of the grid."""
        ...

    @classmethod
    def restore(cls, arrays: Arrays, *, task: str, classes: int, hyper: Hyper) -> "Classifier":
        """The fitted classifier from its `arrays`. UserError: it cannot be made here as it was."""
        ...

    def arrays(self) -> Arrays:
        """Everything that `restore` needs."""
        ...

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Probabilities float32 (n, C) of features (n, F)."""
        ...


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Standardises features by mean and standard deviation of the train split; a constant feature becomes 0."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Scaling":
        """The scaling of the train split's features (n, F)."""
        from sklearn.preprocessing import StandardScaler

        found = StandardScaler().fit(np.asarray(features, np.float64))
        return cls(found.mean_, found.scale_)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Standardised features, float64 (n, F)."""
        return (np.asarray(features, np.float64) - self.mean) / self.scale


def targets(labels: np.ndarray, task: str) -> list[np.ndarray]:
    """The target (n,) of each problem: of each label in a multi-label task, else of the one label."""
    return list(labels.T) if TASKS[task].multi_label else [labels[:, 0]]


def combined(parts: Sequence[tuple[np.ndarray, np.ndarray]], rows: int, task: str, classes: int) -> np.ndarray:
    """Probabilities float32 (n, C) from the classes (K,) and probabilities (n, K) of each problem."""
    found = np.zeros((rows, classes), np.float32)
    for column, (known, probabilities) in enumerate(parts):
        if not TASKS[task].multi_label:
            found[:, known] = probabilities
        elif 1 in known:
            found[:, column] = probabilities[:, -1]
    return found

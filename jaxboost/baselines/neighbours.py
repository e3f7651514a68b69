"""Nearest neighbours by cosine."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxboost.baselines.problem import Arrays, Data, Hyper, Scaling
from jaxboost.tasks import TASKS

# Similarities are compared after rounding, so that the order of equal ones does not depend on the size of a batch.
_DECIMALS = 9
# Most numbers in a matrix of similarities: 0.1 GB, and twice that for their order.
_MOST = 1 << 24


class Neighbours:
    """The frequencies of the classes among the k nearest training samples by the cosine of standardised features.

    Of equally near samples the first in the train split is taken.
    """

    K: ClassVar[tuple[int, ...]] = (129, 65, 33, 17, 9, 5, 3, 1)
    numbers = 0

    def __init__(self, features: np.ndarray, targets: np.ndarray, scaling: Scaling, k: int):
        self.features, self.targets, self.scaling, self.k = features, targets, scaling, k
        self._unit = _unit(scaling(features))

    @classmethod
    def grid(cls, samples: int) -> Sequence[dict[str, Any]]:
        """From the smoothest on."""
        return [{"k": k} for k in cls.K if k <= samples]

    @classmethod
    def fit(cls, data: Data, *, k: int) -> "Neighbours":
        """Keeps the training samples."""
        found = data.labels if TASKS[data.task].multi_label else np.eye(data.classes)[data.labels[:, 0]]
        return cls(data.features, found.astype(np.uint8), Scaling.of(data.features), k)

    @classmethod
    def restore(cls, arrays: Arrays, *, task: str, classes: int, hyper: Hyper) -> "Neighbours":
        """See `Classifier.restore`."""
        scaling = Scaling(arrays["mean"], arrays["scale"])
        return cls(arrays["features"], arrays["targets"], scaling, int(hyper["k"]))

    def arrays(self) -> Arrays:
        """The training samples' features and labels, and the scaling."""
        scaling = {"mean": self.scaling.mean, "scale": self.scaling.scale}
        return {"features": self.features, "targets": self.targets, **scaling}

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See `Classifier.probabilities`."""
        unit, step = _unit(self.scaling(features)), max(1, _MOST // len(self._unit))
        found = [self._of_rows(unit[start : start + step]) for start in range(0, len(unit), step)]
        return np.concatenate([np.zeros((0, self.targets.shape[1])), *found]).astype(np.float32)

    def _of_rows(self, unit: np.ndarray) -> np.ndarray:
        similarities = np.round(unit @ self._unit.T, _DECIMALS)
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, : self.k]
        return self.targets[nearest].mean(1)


def _unit(features: np.ndarray) -> np.ndarray:
    """Features divided by their length; one of length 0 stays."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length == 0, 1, length)

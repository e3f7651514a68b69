"""Prevalence and logistic regression: classifiers that a few numbers describe exactly."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxboost.baselines.problem import Arrays, Data, Hyper, Scaling, combined, targets
from jaxboost.tasks import TASKS


class Prevalence:
    """The frequency of each class in the train split, for every image: what knows nothing of the image."""

    def __init__(self, frequencies: np.ndarray):
        self.frequencies, self.numbers = frequencies, len(frequencies)

    @staticmethod
    def grid(samples: int) -> Sequence[dict[str, Any]]:
        """There is nothing to choose."""
        return [{}]

    @classmethod
    def fit(cls, data: Data) -> "Prevalence":
        """Counts the classes."""
        return cls(TASKS[data.task].class_counts(data.labels, data.classes) / len(data.labels))

    @classmethod
    def restore(cls, arrays: Arrays, *, task: str, classes: int, hyper: Hyper) -> "Prevalence":
        """See `Classifier.restore`."""
        return cls(arrays["frequencies"])

    def arrays(self) -> Arrays:
        """The frequencies."""
        return {"frequencies": self.frequencies}

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """The frequencies (C,) for each row of features (n, F)."""
        return np.tile(self.frequencies, (len(features), 1)).astype(np.float32)


class Logistic:
    """Logistic regression with an L2 penalty on standardised features; C is its inverse strength."""

    C: ClassVar[tuple[float, ...]] = tuple(10.0**power for power in range(-6, 3))

    def __init__(
        self, scaling: Scaling, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], task: str, classes: int
    ):
        """Takes for each binary or multi-class problem the classes (K,), coefficients (K or 1, F), intercepts."""
        self.scaling, self.parts, self.task, self.classes = scaling, parts, task, classes
        self.numbers = sum(coefficients.size + intercept.size for _, coefficients, intercept in parts)

    @classmethod
    def grid(cls, samples: int) -> Sequence[dict[str, Any]]:
        """From the strongest penalty on."""
        return [{"C": value} for value in cls.C]

    @classmethod
    def fit(cls, data: Data, *, C: float) -> "Logistic":  # noqa: N803  scikit-learn's name
        """Fits a model for each problem; a problem with one class has no coefficients."""
        from sklearn.linear_model import LogisticRegression

        scaling, width, parts = Scaling.of(data.features), data.features.shape[1], []
        scaled = scaling(data.features)
        for target in targets(data.labels, data.task):
            known = np.unique(target)
            if len(known) == 1:
                parts.append((known, np.zeros((0, width)), np.zeros(0)))
                continue
            model = LogisticRegression(C=C, max_iter=10_000).fit(scaled, target)
            parts.append((known, model.coef_, model.intercept_))
        return cls(scaling, parts, data.task, data.classes)

    @classmethod
    def restore(cls, arrays: Arrays, *, task: str, classes: int, hyper: Hyper) -> "Logistic":
        """See `Classifier.restore`."""
        count = len([name for name in arrays if name.startswith("known_")])
        parts = [tuple(arrays[f"{name}_{i}"] for name in ("known", "coefficients", "intercept")) for i in range(count)]
        return cls(Scaling(arrays["mean"], arrays["scale"]), parts, task, classes)

    def arrays(self) -> Arrays:
        """Scaling and coefficients, exactly."""
        found = {"mean": self.scaling.mean, "scale": self.scaling.scale}
        for number, (known, coefficients, intercept) in enumerate(self.parts):
            found |= {
                f"known_{number}": known,
                f"coefficients_{number}": coefficients,
                f"intercept_{number}": intercept,
            }
        return found

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See `Classifier.probabilities`."""
        scaled = self.scaling(features)
        return combined([self._of_part(scaled, *part) for part in self.parts], len(features), self.task, self.classes)

    @staticmethod
    def _of_part(
        scaled: np.ndarray, known: np.ndarray, coefficients: np.ndarray, intercept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from scipy import special

        if len(known) == 1:
            return known, np.ones((len(scaled), 1))
        logits = scaled @ coefficients.T + intercept
        if len(known) == 2:
            return known, special.expit(np.concatenate([-logits, logits], axis=1))
        return known, special.softmax(logits, axis=1)

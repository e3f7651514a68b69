"""Gradient-boosted trees."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxboost.baselines.problem import Arrays, Data, Hyper, combined, targets
from jaxboost.errors import UserError


class Boosting:
    """Gradient-boosted trees; they stop when the loss on the validation split has not improved for 10 rounds.

    scikit-learn has no format for fitted trees but pickle, which can run any code when it is read. `restore` fits them
    again to the same data instead, which takes seconds, and compares the result with that of the run.
    """

    LEAVES: ClassVar[tuple[int, ...]] = (4, 16)
    RATES: ClassVar[tuple[float, ...]] = (0.1, 0.03)
    ROUNDS = 500
    PATIENCE = 10
    # Samples of a leaf, at least: scikit-learn's number, but not more than a twentieth of a small train split.
    LEAF = 20
    # What is left of 32-bit sums in another order.
    _TOLERANCE = 1e-6

    def __init__(self, data: Data, models: Sequence[tuple[np.ndarray, Any]], leaves: int):
        """Takes for each problem the classes (K,), and scikit-learn's model, None if there is one class."""
        self._data, self._models = data, models
        # Of each tree at most this many leaves; scikit-learn does not tell the exact number.
        self.numbers = sum(
            model.n_iter_ * model.n_trees_per_iteration_ * leaves for _, model in models if model is not None
        )

    @classmethod
    def grid(cls, samples: int) -> Sequence[dict[str, Any]]:
        """From the smallest trees on."""
        return [{"leaves": leaves, "rate": rate} for leaves in cls.LEAVES for rate in cls.RATES]

    @classmethod
    def fit(cls, data: Data, *, leaves: int, rate: float) -> "Boosting":
        """Fits the trees of each problem."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        models: list[tuple[np.ndarray, Any]] = []
        pairs = zip(targets(data.labels, data.task), targets(data.val_labels, data.task), strict=True)
        for target, val_target in pairs:
            known = np.unique(target)
            if len(known) == 1:
                models.append((known, None))
                continue
            # A class that the train split lacks has no loss.
            rows = np.isin(val_target, known)
            stops = bool(rows.any())
            model = HistGradientBoostingClassifier(
                learning_rate=rate,
                max_leaf_nodes=leaves,
                min_samples_leaf=max(1, min(cls.LEAF, len(target) // 20)),
                max_iter=cls.ROUNDS if stops else 100,
                early_stopping=stops,
                n_iter_no_change=cls.PATIENCE,
                random_state=data.seed,
            )
            val = {"X_val": data.val_features[rows], "y_val": val_target[rows]} if stops else {}
            models.append((known, model.fit(data.features, target, **val)))
        return cls(data, models, leaves)

    @classmethod
    def restore(cls, arrays: Arrays, *, task: str, classes: int, hyper: Hyper) -> "Boosting":
        """Fits the trees again; see `Classifier.restore`."""
        names = ("features", "labels", "val_features", "val_labels")
        data = Data(**{name: arrays[name] for name in names}, task=task, classes=classes, seed=int(arrays["seed"]))
        fitted = cls.fit(data, leaves=int(hyper["leaves"]), rate=float(hyper["rate"]))
        if np.abs(fitted.probabilities(data.val_features) - arrays["val_probabilities"]).max() > cls._TOLERANCE:
            raise UserError(
                "the trees that are fitted again from the run's data are not those of the run, as other versions of"
                " scikit-learn make others: install the versions in its result.json, or run it again"
            )
        return fitted

    def arrays(self) -> Arrays:
        """The data that the trees are fitted to, and their probabilities for the validation split."""
        data = self._data
        return {
            "features": data.features,
            "labels": data.labels,
            "val_features": data.val_features,
            "val_labels": data.val_labels,
            "seed": np.array(data.seed),
            "val_probabilities": self.probabilities(data.val_features),
        }

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See `Classifier.probabilities`."""
        found = [
            (known, np.ones((len(features), 1)) if model is None else model.predict_proba(features))
            for known, model in self._models
        ]
        return combined(found, len(features), self._data.task, self._data.classes)

"""Classifiers on features, most of them scikit-learn's, with hyper-parameters that validation chooses.

A classifier is fitted to the train split alone: it is not fitted again to train and validation together, because the
trained models that it is compared with do not see the validation split either. A class that the train split lacks gets
the probability 0. A multi-label task is one binary problem for each label.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxboost.baselines.boosting import Boosting
from jaxboost.baselines.linear import Logistic, Prevalence
from jaxboost.baselines.neighbours import Neighbours
from jaxboost.baselines.problem import Classifier, Data
from jaxboost.baselines.zero_shot import ZeroShot
from jaxboost.config.model_fields import ZERO_SHOT
from jaxboost.evaluation import metrics

CLASSIFIERS: dict[str, type[Any]] = {
    "prevalence": Prevalence,
    "logistic": Logistic,
    "knn": Neighbours,
    "boosting": Boosting,
    ZERO_SHOT: ZeroShot,
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The classifier that validation chose.

    Attributes:
      classifier: fitted with these hyper-parameters.
      hyper: name -> value.
      value: its score on validation.
      tried: the hyper-parameters of the grid and their scores.
    """

    classifier: Classifier
    hyper: dict[str, Any]
    value: float
    tried: list[tuple[dict[str, Any], float]]


def choose(kind: str, data: Data, score: Callable[[np.ndarray], float]) -> Choice:
    """Fits a classifier with each hyper-parameter of its grid, and returns the best on validation.

    Args:
      kind: a key of CLASSIFIERS.
      data: train and validation split.
      score: probabilities (n, C) of the validation split -> what is to be large; NaN if it is undefined.
    """
    best: Choice | None = None
    tried: list[tuple[dict[str, Any], float]] = []
    for hyper in CLASSIFIERS[kind].grid(len(data.labels)):
        fitted = CLASSIFIERS[kind].fit(data, **hyper)
        value = score(fitted.probabilities(data.val_features))
        tried.append((hyper, value))
        if best is None or metrics.is_better(value, best.value, ties="earlier"):
            best = Choice(fitted, hyper, value, tried)
    assert best is not None
    return best

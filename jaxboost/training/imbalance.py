"""Class weights in the loss, for classes of unequal size."""

import numpy as np

from jaxboost.config.class_weights import BALANCED, parse
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.tasks import TASKS


def class_weights(spec: str, labels: np.ndarray, info: DatasetInfo) -> tuple[float, ...]:
    """The class weights for `step.Objective`.

    Args:
      spec: the config's train.class_weights: "" for none, "balanced", or one number per class, such as "1,2.5".
      labels: of the training split, (n, L).
      info: of the data set.

    Returns:
      () for none. "balanced": n / (C n_c) for class c of C classes, so that all classes contribute equally and the mean
      weight over the examples is 1. With several labels per image: (n - n_c) / n_c, the odds against a label, so that
      presence and absence contribute equally.

    Raises:
      UserError: an invalid value, or a class that "balanced" cannot weight because no example, or every one, has it.
    """
    task, classes = TASKS[info.task], len(info.classes)
    if spec != BALANCED:
        return parse(spec, classes)
    counts, n = task.class_counts(labels, classes), len(labels)
    if not counts.all() or (task.multi_label and (counts == n).any()):
        which = info.classes[int(np.argmin(counts) if not counts.all() else np.argmax(counts))]
        raise UserError(
            f"config field train.class_weights: {'every' if counts.all() else 'no'} training example is {which!r},"
            f" which cannot be balanced: give {classes} numbers"
        )
    return tuple(((n - counts) / counts if task.multi_label else n / (classes * counts)).tolist())

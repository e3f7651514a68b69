"""The text of train.class_weights. `combinations` checks it, `training.imbalance` reads it."""

import math

from jaxboost.errors import UserError

BALANCED = "balanced"


def parse(spec: str, classes: int | None = None) -> tuple[float, ...]:
    """The numbers in "1,2.5"; () for "" and "balanced", which name none.

    Args:
      spec: the text.
      classes: how many numbers there should be; None: not known.

    Raises:
      UserError: it is none of these, or all numbers are 0.
    """
    if spec in ("", BALANCED):
        return ()
    try:
        weights = tuple(float(text) for text in spec.split(","))
    except ValueError:
        weights = ()
    if (
        len(weights) != (classes or len(weights))
        or not all(0 <= weight < math.inf for weight in weights)
        or not any(weights)
    ):
        wanted = f"{classes} numbers from 0" if classes else "a number from 0 for each class"
        raise UserError(
            f'config field train.class_weights: {spec!r} should be empty, "balanced", or {wanted} with commas between'
            " them, not all of them 0"
        )
    return weights

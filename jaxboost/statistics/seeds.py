"""The spread of a figure over seeds, or over the folds of a cross-validation."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds; None where it is undefined.

    Attributes:
      n: number of seeds.
      mean, min, max: None without seeds, or if a seed has no figure.
      sd: standard deviation (n - 1); also None for one seed.
    """

    n: int
    mean: float | None
    sd: float | None
    min: float | None
    max: float | None


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean, standard deviation (n - 1), smallest and largest of a figure, (seeds,).

    If one seed's figure is undefined, so are all: a mean over the others would be one of other runs.
    """
    values = np.asarray(values, float)
    n = len(values)
    if not n or not np.isfinite(values).all():
        return Spread(n=n, mean=None, sd=None, min=None, max=None)
    sd = float(values.std(ddof=1)) if n > 1 else None
    return Spread(n=n, mean=float(values.mean()), sd=sd, min=float(values.min()), max=float(values.max()))

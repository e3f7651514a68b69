"""The bootstrap over items or patients, with bias-corrected and accelerated limits (BCa, Efron 1987).

A statistic is a function of how often each item is drawn, int64 (b, n) -> (b,), so that what does not depend on the
draw, such as an order of the scores, is computed once and not for each of the b resamples.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
Interval = tuple[float, float]
UNDEFINED: Interval = (float("nan"), float("nan"))
# Two figures that should be equal, such as two differences of the same fractions, are at most this far apart.
ROUNDING = 1e-12

# Resamples are drawn in blocks: about 10 arrays of this many int64 numbers are in memory at a time.
_BLOCK = 1 << 19


def group_numbers(groups: np.ndarray | None, items: int) -> np.ndarray:
    """The number of each item's group, int (n,), from 0 in the order of first items; None: each item is its own group.

    So an interval does not depend on the names of the groups.
    """
    if groups is None:
        return np.arange(items)
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers.reshape(-1)]


def draws(numbers: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each item is drawn, int64 (b, n) in blocks, when as many groups as there are are drawn.

    An array is the transpose of one in C order. The resamples do not depend on the size of a block; if each item is its
    own group, they are those that `scipy.stats.bootstrap` makes of the same seed.

    Args:
      numbers: the group of each item, int (n,), see `group_numbers`.
      resamples: the number of resamples, over all blocks.
      seed: random seed.
    """
    rng = np.random.default_rng(seed)
    groups = int(numbers.max()) + 1
    alone = np.array_equal(numbers, np.arange(len(numbers)))
    batch = max(1, _BLOCK // len(numbers))
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        drawn = rng.integers(0, groups, (size, groups))
        places = drawn * size + np.arange(size)[:, np.newaxis]
        counts = np.bincount(places.ravel(), minlength=groups * size).reshape(groups, size)
        yield (counts if alone else counts[numbers]).T


def without_each(statistic: Statistic, numbers: np.ndarray) -> np.ndarray:
    """The statistic without each group, (g,): the jackknife. It takes g evaluations."""
    groups = int(numbers.max()) + 1
    batch = max(1, _BLOCK // len(numbers))
    blocks = [
        statistic((numbers != np.arange(start, min(start + batch, groups))[:, np.newaxis]).astype(np.int64))
        for start in range(0, groups, batch)
    ]
    return np.concatenate(blocks)


def bca(
    statistic: Statistic,
    items: int,
    *,
    groups: np.ndarray | None = None,
    resamples: int,
    seed: int = 0,
    level: float = 0.95,
    left_out: np.ndarray | None = None,
) -> Interval:
    """BCa interval of a statistic over items or, with groups, over groups of items.

    Resamples without a value (NaN), such as an AUC without one of the classes, are left out.

    Args:
      statistic: how often each item is drawn, int64 (b, n) -> (b,).
      items: n.
      groups: the patient of each item, (n,); None: each item is drawn by itself.
      resamples: the number of resamples.
      seed: random seed.
      level: the coverage asked for.
      left_out: the statistic without each group, in the order of `group_numbers`, if it is known; else `without_each`.

    Returns:
      (low, high); NaN if the statistic is undefined or the same in all resamples.

    Raises:
      ValueError: there are no items.
    """
    if not items:
        raise ValueError("there are no items to draw: an interval needs one or more")
    numbers = group_numbers(groups, items)
    estimate = float(statistic(np.ones((1, items), np.int64))[0])
    if not np.isfinite(estimate):
        return UNDEFINED
    distribution = np.concatenate([statistic(drawn) for drawn in draws(numbers, resamples, seed)])
    left_out = without_each(statistic, numbers) if left_out is None else left_out
    return bca_limits(estimate, distribution, [left_out], level=level)


def bca_limits(
    estimate: float, distribution: np.ndarray, left_out: Sequence[np.ndarray], *, level: float = 0.95
) -> Interval:
    """The limits of a BCa interval (Efron and Tibshirani 1993, equations 14.9 to 14.15).

    Args:
      estimate: the statistic of the data.
      distribution: the statistic of each resample, (b,). NaN is left out.
      left_out: for each factor that was resampled (patients; seeds), the statistic without each of its members. NaN is
        left out. Several factors give the acceleration of several samples, as in `scipy.stats.bootstrap`.
      level: the coverage asked for.

    Returns:
      (low, high); NaN if all resamples have the same value or lie on one side of the estimate.
    """
    from scipy.special import ndtr, ndtri

    distribution = distribution[np.isfinite(distribution)]
    if not np.isfinite(estimate) or not distribution.size:
        return UNDEFINED
    rounding = ROUNDING * max(abs(estimate), np.abs(distribution).max())
    if np.ptp(distribution) <= rounding:
        return UNDEFINED
    # Resamples equal to the estimate count half, as for scipy.
    bias = ndtri(fraction_above(estimate - distribution, rounding))
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    stretch = 1 - _acceleration(left_out) * shifted
    if not np.isfinite(bias) or (stretch <= 0).any():
        return UNDEFINED
    low, high = np.quantile(distribution, ndtr(bias + shifted / stretch))
    return float(low), float(high)


def fraction_above(values: np.ndarray, rounding: float = ROUNDING) -> float:
    """The fraction of values above 0, NaN of none. Values that are 0, up to a rounding error, count half."""
    return float(((values > rounding).mean() + (values >= -rounding).mean()) / 2) if values.size else float("nan")


def _acceleration(left_out: Sequence[np.ndarray]) -> float:
    cubes = squares = 0.0
    for values in left_out:
        values = values[np.isfinite(values)]
        if values.size > 1:
            influence = (values.size - 1) / values.size * (values.mean() - values)
            cubes += (influence**3).sum()
            squares += (influence**2).sum()
    return float(cubes / (6 * squares**1.5)) if squares else 0.0

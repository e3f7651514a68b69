"""Several tests at once."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p values (Holm 1979): those up to alpha are shown at the family-wise error rate alpha.

    Args:
      p_values: (t,). NaN is no test: it stays NaN, and the others are adjusted as if it were not there.

    Raises:
      ValueError: a p value is below 0 or above 1.
    """
    p_values = np.asarray(p_values, float)
    tested = ~np.isnan(p_values)
    if not ((p_values[tested] >= 0) & (p_values[tested] <= 1)).all():
        raise ValueError("p values lie between 0 and 1")
    # By hand: statsmodels collects all garbage of the process in each call, which may take seconds.
    order = np.flatnonzero(tested)[np.argsort(p_values[tested], kind="stable")]
    adjusted = np.full(p_values.shape, np.nan)
    # The smallest of t is multiplied by t, the next by t - 1; none may become smaller than the one before.
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return adjusted

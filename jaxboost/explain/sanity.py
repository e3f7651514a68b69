"""The sanity check of Adebayo et al. 2018: a map that does not depend on the weights explains nothing.

The trained weights are drawn anew, as at the start of a training from random weights; frozen ones and the statistics of
batch norms stay. Spearman's rank correlation of an image's map with the map of that model should be low.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
import scipy.stats
from flax import nnx

from jaxboost.explain.tapped import Weights
from jaxboost.inference.open_run import FinishedRun
from jaxboost.models import frozen
from jaxboost.models.frozen import Tree
from jaxboost.models.rngs import make_rngs

SEED = 1_000_003  # unlike the seeds of runs, which would draw the same weights


def redrawn(run: FinishedRun, seed: int = SEED) -> Weights:
    """The run's weights with the trained ones drawn anew."""
    return (jax.device_put(_draw(run.system.build, jax.random.key(seed)), run.replicated), *run.weights[1:])


# At the level of the module: several draws of one model compile once.
@functools.partial(jax.jit, static_argnums=0)
def _draw(build: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Tree:
    return frozen.split(build(make_rngs(key)))[1]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of two maps of the same shape; None if one of them has the same value everywhere."""
    first, second = np.ravel(a), np.ravel(b)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(scipy.stats.spearmanr(first, second).statistic)

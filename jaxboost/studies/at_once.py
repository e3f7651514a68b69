"""Seeds of an arm that one program trains at once, where that pays; see `runs.seeds`."""

import gc
import logging
from collections.abc import Mapping, Sequence

import jax

from jaxboost import systems
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.runs import datasets, seeds
from jaxboost.runs.lock import InUseError
from jaxboost.studies import plan
from jaxboost.studies.plan import PlannedRun

# Part of an accelerator's memory that the weights, gradients and the optimiser's state of all seeds may take.
_SHARE = 0.3
# In float32: the weight, its average, its gradient and two means; and all but the gradient again while they are saved.
_BYTES_PER_WEIGHT = 4 * 9

logger = logging.getLogger(__name__)


def others(each: PlannedRun, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The run and those of other seeds of its arm that are not finished; the run alone if its kind has none.

    A run that tunes a learning rate has no other seeds, and one that evaluates another's weights trains nothing.
    """
    if each.rate is not None or each.arm.after or "train" not in each.config:
        return [each]
    alike = [run for run in runs if run.arm.name == each.arm.name and run.rate is None]
    return [run for run in alike if run is each or plan.state_of(run) in ("waiting", "interrupted")]


def pays(mode: str, config: Config, count: int) -> bool:
    """Whether several seeds are trained at once.

    Args:
      mode: "true", "false" or "auto": on an accelerator, if the states of all seeds are a small part of its memory, as
        small models leave most of it idle. On a CPU runs of a study share their compiled programs already, and a step
        of several seeds takes nearly as long as their steps one after the other.
      config: of one of the runs.
      count: number of seeds.
    """
    if mode != "auto" or count < 2:
        return mode == "true" and count > 1
    if jax.default_backend() == "cpu":
        return False
    try:
        seeds.check(config)
    except UserError:
        return False
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    system = systems.prepare(config, datasets.describe(config), with_weights=False)
    return count * frozen.count(system.params) * _BYTES_PER_WEIGHT < _SHARE * limit


def attempt(runs: Sequence[PlannedRun], configs: Mapping[str, Config]) -> bool | None:
    """Trains runs at once.

    Args:
      runs: of one arm.
      configs: key of a run -> its config.

    Returns:
      True if all are finished; None if a signal stopped them, or if they have to be trained one after the other.
    """
    name = ", ".join(str(run.seed) for run in runs)
    logger.info("%s (%s), seeds %s at once", runs[0].arm.name, runs[0].arm.title, name)
    try:
        found = seeds.train_and_evaluate({run.folder: configs[run.key] for run in runs})
    except InUseError:
        return None
    except Exception as error:
        # Such as the loss of one seed that is not finite, or too little memory: alone each shows its own mistake.
        reason = " ".join(str(error).split())
        logger.warning("%s: seeds %s are trained one after the other (%s)", runs[0].arm.name, name, reason)
        return None
    finally:
        # Weights of a run are in reference cycles.
        gc.collect()
    return None if found is None else True

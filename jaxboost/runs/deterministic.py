"""`train.deterministic`: XLA's setting with which a GPU computes the same bits again, also when a run goes on.

Two things differ from start to start on a GPU: kernels whose sums depend on the order of threads, and the choice among
kernels by measuring them (autotuning). XLA's flag excludes the first and switches the second off. XLA reads it once,
when jax's backend starts, so it is given first of all. A CPU computes the same bits without it.
"""

import logging
import os
import re

from jaxboost.errors import UserError

FLAG = "--xla_gpu_deterministic_ops"
_VARIABLE = "XLA_FLAGS"

logger = logging.getLogger(__name__)


def prepare() -> None:
    """Gives XLA the flag, if jax's backend has not started.

    Raises:
      UserError: it has started on another device than a CPU and without the flag, by other code of the process. Or the
        flag cannot be given.
    """
    given = os.environ.get(_VARIABLE, "")
    if _has_started():
        if not _is_cpu() and not is_given(given):
            raise UserError(
                "config field train.deterministic: jax has started before, without its setting: set"
                f" {_VARIABLE}={FLAG}=true in the environment, or train before anything else uses jax"
            )
        return
    os.environ[_VARIABLE] = with_flag(given)
    logger.info("deterministic: %s has %s=true", _VARIABLE, FLAG)


def with_flag(given: str) -> str:
    """A value of XLA_FLAGS with the flag.

    Args:
      given: the value so far, whose other settings stay.

    Raises:
      UserError: `given` names a file.
    """
    words = _words(given)
    if words and not words[0].startswith("--"):
        raise UserError(f"{_VARIABLE}={given} is not a list of flags: train.deterministic adds one, give them as text")
    return " ".join([*(word for word in words if word.partition("=")[0] != FLAG), f"{FLAG}=true"])


def is_given(given: str) -> bool:
    """Whether a value of XLA_FLAGS has the flag."""
    return f"{FLAG}=true" in _words(given)


def _words(given: str) -> list[str]:
    # Quoted values may have spaces.
    return re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", given)


def _has_started() -> bool:
    # jax has no public question for this; `jax.distributed.initialize` asks the same.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def _is_cpu() -> bool:
    from jaxboost import device

    return device.current().platform == "cpu"

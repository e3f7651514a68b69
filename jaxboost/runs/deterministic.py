"""`train.deterministic`: XLA's settings with which a GPU computes the same bits again, also when a run goes on.

Two things differ from start to start on a GPU: kernels whose sums depend on the order of threads, and the choice among
kernels by measuring them (autotuning). The first are excluded; the choices are kept in a file of the run's folder, and
read from there by later starts. XLA reads its settings once, when jax's backend starts, so they are made first of all.
A CPU computes the same bits without them.
"""

import logging
import os
import pathlib
import re

from jaxboost.errors import UserError

FILE = "autotuning.textproto"
_VARIABLE = "XLA_FLAGS"
_EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops"
_DUMP, _LOAD = "--xla_gpu_dump_autotune_results_to", "--xla_gpu_load_autotune_results_from"
_OURS = (_EXCLUDE, _DUMP, _LOAD)

logger = logging.getLogger(__name__)


def prepare(folder: pathlib.Path) -> None:
    """Makes XLA's settings for the run in `folder`, if jax's backend has not started.

    Raises:
      UserError: it has started on another device than a CPU, and not with these settings: by other code of the process,
        or for another run. Or the settings cannot be given.
    """
    given = os.environ.get(_VARIABLE, "")
    if _has_started():
        if not _is_cpu() and not is_given(given, folder):
            raise UserError(
                f"config field train.deterministic: jax has started before, without the settings for {folder}: give"
                " each run a process of its own, in which nothing uses jax before the training"
            )
        return
    os.environ[_VARIABLE] = with_flags(given, folder)
    logger.info("deterministic: the choice of kernels on a GPU is kept in %s", folder / FILE)


def with_flags(given: str, folder: pathlib.Path) -> str:
    """The value of XLA_FLAGS for the run in `folder`.

    Args:
      given: the value so far, whose other settings stay.
      folder: of the run. Its file of choices is read if there is one.

    Raises:
      UserError: `given` names a file, or the folder has a character that XLA_FLAGS cannot hold.
    """
    # Quoted values may have spaces.
    words = re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", given)
    if words and not words[0].startswith("--"):
        raise UserError(f"{_VARIABLE}={given} is not a list of flags: train.deterministic adds some, give them as text")
    file = str((folder / FILE).absolute())
    if any(mark in file for mark in "\"'\\\n"):
        raise UserError(
            f"--workdir {folder}: with train.deterministic it must not have a quotation mark or a backslash"
        )
    # XLA takes a quoted value; a name may have spaces.
    flags = [f"{_EXCLUDE}=true", f'{_DUMP}="{file}"', *([f'{_LOAD}="{file}"'] if (folder / FILE).exists() else [])]
    return " ".join([*(word for word in words if word.partition("=")[0] not in _OURS), *flags])


def is_given(given: str, folder: pathlib.Path) -> bool:
    """Whether a value of XLA_FLAGS has the settings for the run in `folder`."""
    file = str((folder / FILE).absolute())
    return f"{_EXCLUDE}=true" in given.split() and f'{_DUMP}="{file}"' in given


def _has_started() -> bool:
    # jax has no public question for this; `jax.distributed.initialize` asks the same.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def _is_cpu() -> bool:
    from jaxboost import device

    return device.current().platform == "cpu"

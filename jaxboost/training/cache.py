"""Compiled programs, kept for the next start."""

import logging
import pathlib
import tempfile
import warnings

import jax
import pooch

logger = logging.getLogger(__name__)


def keep_compiled_programs(enabled: bool) -> None:
    """Lets a program that was compiled for the same shapes before start at once, from the user's cache folder.

    Where the folder cannot be used, a warning says so, and programs are compiled again each time.
    """
    # The environment variable JAX_COMPILATION_CACHE_DIR comes first.
    folder = jax.config.jax_compilation_cache_dir or str(pooch.os_cache("jaxboost") / "compiled")
    # A cache may lie in a bucket too, which JAX writes itself.
    if enabled and "://" not in folder and (reason := _refusal(pathlib.Path(folder))):
        logger.warning(
            "compiled programs are not kept, %s cannot be written (%s): set JAX_COMPILATION_CACHE_DIR to another"
            " folder, or train.compilation_cache=False",
            folder,
            reason,
        )
        # What others have left there can still be read.
        enabled = pathlib.Path(folder).is_dir()
    # What fails later, as on a full disk, costs time alone. JAX warns of it for each program.
    warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation cache entry")
    jax.config.update("jax_enable_compilation_cache", enabled)
    if enabled and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", folder)


def _refusal(folder: pathlib.Path) -> str:
    """Why nothing can be written to a folder, which is made where it is missing; empty where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # By trying: permissions do not show that a file system is read-only or full.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""

"""Keeps compiled programs on disk for the next start."""

import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
import time
import uuid
import warnings
from typing import Any

import jax
import pooch

logger = logging.getLogger(__name__)

_SUFFIX = "-cache"  # of JAX's entries
_PART = ".part"  # of ours that are being written
_REMAINS_SECONDS = 24 * 3600.0


def keep_compiled_programs(enabled: bool) -> None:
    """Sets JAX's persistent compilation cache to the user's cache folder.

    If the folder cannot be written, a warning says so, and programs are compiled again at each start.

    Args:
      enabled: False switches the cache off.
    """
    # The environment variable JAX_COMPILATION_CACHE_DIR takes precedence.
    named = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = named or str(pooch.os_cache("jaxboost") / "compiled")
    # JAX writes to a bucket (gs://...) itself.
    if enabled and "://" not in folder and (reason := _refusal(pathlib.Path(folder))):
        logger.warning(
            "compiled programs are not kept, %s cannot be written (%s): set JAX_COMPILATION_CACHE_DIR to another"
            " folder, or train.compilation_cache=False",
            folder,
            reason,
        )
        # Programs that are there already can still be read.
        enabled = pathlib.Path(folder).is_dir()
    # A later failure, as on a full disk, only costs time, but JAX would warn for each program.
    warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation cache entry")
    jax.config.update("jax_enable_compilation_cache", enabled)
    if enabled:
        _write_entries_whole()
        if "://" not in folder:
            _remove_remains(pathlib.Path(folder))
    if enabled and not named:
        jax.config.update("jax_compilation_cache_dir", folder)


def _write_entries_whole() -> None:
    """Makes JAX write each entry under a temporary name first.

    JAX opens the entry itself, and never writes one that is there already. Two processes on a shared disk would write
    into each other's entry; and after a process that was killed meanwhile, every later start would read half an entry,
    warn, and compile. JAX has no setting for this, so its class is changed; a version without it stays as it is.
    """
    try:
        from jax._src.lru_cache import LRUCache
    except ImportError:
        return
    put = LRUCache.put
    if getattr(put, "whole", False):
        return

    def put_whole(cache: Any, key: str, value: bytes) -> None:
        # A cache with a limit has a lock of its own, and a bucket takes a file whole.
        if cache.eviction_enabled or "://" in str(cache.path):
            put(cache, key, value)
            return
        entry = pathlib.Path(cache.path) / f"{key}{_SUFFIX}"
        if entry.exists():
            return
        folder = entry.with_name(f".{uuid.uuid4().hex}{_PART}")
        try:
            put(LRUCache(str(folder), max_size=-1), key, value)
            os.replace(folder / entry.name, entry)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    put_whole.whole = True  # pyright: ignore[reportFunctionMemberAccess]
    LRUCache.put = put_whole  # pyright: ignore[reportAttributeAccessIssue]


def _remove_remains(folder: pathlib.Path) -> None:
    """Removes what processes that were killed have left; an entry is written within seconds."""
    oldest = time.time() - _REMAINS_SECONDS
    for path in folder.glob(".*" + _PART):
        # Another process may remove it at this moment, and the folder may be read-only.
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)


def _refusal(folder: pathlib.Path) -> str:
    """Why a folder cannot be written, "" if it can. A missing folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not show that a file system is read-only or full, so a file is written.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""

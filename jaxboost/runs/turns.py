"""Processes that share a folder of encoded images take turns, so that only the first one computes them."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator

import filelock

from jaxboost import io, stopping

# As the lock of a run: it ends by itself if its owner has ended.
_LEASE = 120.0  # seconds
_POLL = 1.0  # seconds between two tries

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def take(folder: pathlib.Path, name: str, *, where: str = "") -> Iterator[None]:
    """Holds `folder`/`name`.lock while the block runs; waits while another process holds it.

    Args:
      folder: the shared folder; it is created if it is missing.
      name: what is computed, such as "embeddings"; things of different names do not wait for each other.
      where: the folder's name in the message if it cannot be written; "": its path.

    Raises:
      UserError: the folder cannot be written.
      Stopped: a signal came while it waited.
    """
    with io.writing(where or folder):
        folder.mkdir(parents=True, exist_ok=True)
        lease = filelock.SoftFileLease(
            folder / f"{name}.lock", lease_duration=_LEASE, heartbeat_interval=_LEASE / 8, thread_local=False
        )
        waits = False
        while not _try(lease):
            if not waits:
                logger.info("another run computes %s in %s: waiting for it", name, folder)
            waits = True
            stopping.poll()
            time.sleep(_POLL)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lease.release(force=True)


def _try(lease: filelock.SoftFileLease) -> bool:
    try:
        lease.acquire(timeout=0)
    except filelock.Timeout:
        return False
    return True

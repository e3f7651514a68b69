"""The most memory that a run held."""

import contextlib
import pathlib
import re

import jax

_RESET = "5"  # to /proc/self/clear_refs: the peak of the process counts from now on (proc(5))
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Peak:
    """Measures from its creation on, because several runs may follow each other in one process.

    On a CPU it is the resident memory of the whole process: programs and data of a study count too. On an accelerator
    it is the memory of the first device.
    """

    def __init__(self) -> None:
        self._before = _on_device()
        self._is_reset = False
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text(_RESET, encoding="ascii")
            self._is_reset = True

    def gigabytes(self) -> float | None:
        """The peak so far, in GB (1e9 bytes).

        None where the system does not tell, or where an earlier run of the process held more memory of the device.
        """
        on_device = _on_device()
        if on_device is not None:
            return on_device / 1e9 if on_device > (self._before or 0) else None
        if not self._is_reset:
            return None
        try:
            found = _PEAK.search(pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
        except OSError:
            return None
        return round(int(found[1]) * 1024 / 1e9, 2) if found else None


def _on_device() -> int | None:
    """Bytes that were in use at most on the first device; None on a CPU."""
    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("peak_bytes_in_use")

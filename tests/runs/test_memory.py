"""The peak memory of a run, where Linux tells it."""

import pathlib

import pytest

from jaxboost.runs import memory
from tests.scripts import run_script

PROGRAM = """
import numpy as np
from jaxboost.runs import memory

big = np.ones(50_000_000)  # 0.4 GB, in memory and gone before the measurement starts
del big
peak = memory.Peak()
before = peak.gigabytes()
held = np.ones(25_000_000)
print(before, peak.gigabytes())
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_counts_from_the_start_on():
    # In a process of its own: the system may take memory away from one that holds much.
    done = run_script("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    before, during = map(float, done.stdout.split())
    assert during - before == pytest.approx(0.2, abs=0.05)


def test_nothing_is_known_where_the_system_does_not_tell(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr(pathlib.Path, "write_text", refuse)
    assert memory.Peak().gigabytes() is None


def test_an_accelerator_tells_its_own_peak(monkeypatch):
    """A run that needed less than one before it in the same process is not given the other's figure."""
    peaks = iter([None, 3_000_000_000, 3_000_000_000, 3_000_000_000])
    monkeypatch.setattr(memory, "_on_device", lambda: next(peaks))
    assert memory.Peak().gigabytes() == 3.0
    assert memory.Peak().gigabytes() is None

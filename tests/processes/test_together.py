"""Processes that end together: failures, signals and kills, in programs that do no more than wait for each other."""

import os
import signal
import sys

import pytest

from tests.processes.starts import forks, free_port, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# A command whose processes take steps together; what happens to one of them is in `{middle}`. `wait` waits where no
# signal reaches Python, as in a collective.
PROGRAM = """
import contextlib, ctypes, logging, os, signal, sys, threading, time
from jaxboost import processes, stopping
from jaxboost.cli import app
from jaxboost.errors import UserError
from jaxboost.processes import joining, launch

index, count, port = {index}, {count}, {port}
sys.argv = ["program"]

def step(number):
    # The next step needs all, as one with a collective does.
    processes.gather(f"step {{number}}", None)

def wait():
    # For a lock that it holds itself.
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    while True:
        library.pthread_mutex_lock(lock)

def main():
    found = launch.Launch(
        count=count, index=index, host="127.0.0.1", ports=(port,), key="k", found_by="flags"
    )
    options = joining.Options(start_timeout=20, heartbeat_timeout={patience}, stuck_timeout=60)
    with joining.joined(found, options, app.in_words):
        step(0)
        print("together", flush=True)
        {middle}

app.run(main, resumable=True)
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with forks(tmp_path_factory.mktemp("together"), "jaxboost.processes.joining") as made:

        def start(middle, count=3, patience=20.0):
            port = free_port()
            found = [
                made.start(
                    before=PROGRAM.format(
                        index=index,
                        count=count,
                        port=port,
                        patience=patience,
                        middle="\n        ".join(middle.splitlines()),
                    )
                )
                for index in range(count)
            ]
            return found, made

        yield start


def name(found, index):
    return f"process {index} of {len(found)} ({os.uname().nodename}, pid {found[index].pid})"


AGREED = """
with stopping.deferred():
    for number in range(1, 10**6):
        step(number)
        if index == 1 and number == 5:
            os.kill(os.getpid(), signal.{name})
        if stopping.received():
            break
print("after step", number, stopping.received(), flush=True)
"""


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_stops_all_after_the_same_step(signal_name, started):
    found, made = started(AGREED.format(name=signal_name))
    assert made.wait(*found) == [0, 0, 0]
    (line,) = {each.out.read_text().splitlines()[1] for each in found}
    assert line.startswith("after step")
    assert line.endswith(signal_name)
    assert 5 <= int(line.split()[2]) < 20
    assert [each.lines() for each in found] == [[], [], []]


def test_a_signal_where_nothing_is_lost_stops_all_at_once(started):
    found, made = started("if index == 2: os.kill(os.getpid(), signal.SIGTERM)\nstep(1)")
    assert made.wait(*found) == [0, 0, 0]
    assert [each.lines() for each in found] == [[], [], []]
    assert all("stopped by SIGTERM: run the same command again" in each.out.read_text() for each in found)


# Process 1 asks for a stop where the others have passed their last point, or none at all.
LATE = """
with stopping.deferred():
    step(1)
    stopping.received()
    if index == 1: os.kill(os.getpid(), signal.SIGTERM)
    if index == 1: stopping.received()
    stops = processes.all_stop()
print("all stop", stops, stopping.received(), flush=True)
"""
# The others are inside of the loop when process 0, which is not, ends; process 2 has a signal of its own too.
OUTSIDE = """
if index == 0:
    step(1)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
with stopping.deferred():
    step(1)
    if index == 2: os.kill(os.getpid(), signal.SIGTERM)
    while True:
        stopping.received()
        time.sleep(0.01)
"""
IN_COMPILER = """
stopping.GRACE_SECONDS = 0.2
if index == 1:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    wait()
step(1)
"""


@pytest.mark.parametrize(("middle", "line"), [(LATE, "all stop True SIGTERM"), (OUTSIDE, None), (IN_COMPILER, None)])
def test_a_signal_where_not_all_can_agree_stops_all(middle, line, started):
    found, made = started(middle)
    assert made.wait(*found) == [0, 0, 0]
    for each in found:
        assert each.lines() == []
        printed = each.out.read_text().splitlines()[1]
        assert printed == line if line else printed.startswith("stopped by SIGTERM")


def test_a_mistake_of_one_is_told_by_all(started):
    found, made = started("if index == 1: raise UserError('no file x: give another')\nstep(1)")
    assert made.wait(*found) == [2, 2, 2]
    told = f"error: {name(found, 1)}: no file x: give another"
    assert [each.lines() for each in found] == [[told], ["error: no file x: give another"], [told]]


def test_a_difference_is_told_by_all(started):
    found, made = started("processes.check_same('the config', {'a': index // 2, 'b': 1}, 'give the same')")
    assert made.wait(*found) == [2, 2, 2]
    line = f"error: {name(found, 2)} differs from process 0 in the config: a (process 2: 1, process 0: 0)"
    assert [each.lines() for each in found] == [[f"{line}: give the same"]] * 3


def test_a_bug_of_one_ends_all(started):
    found, made = started("if index == 0: raise TypeError('x')\nstep(1)")
    assert made.wait(*found) == [1, 1, 1]
    assert found[0].lines()[0].startswith("Traceback")
    assert found[2].lines() == [f"error: {name(found, 0)}: TypeError: x"]


# What collectives raise when another process is gone, and waits that no signal interrupts.
CONSEQUENCES = """
if index == 2:
    time.sleep(60)
elif index == 1:
    wait()
try:
    step(1)
except BaseException:
    raise RuntimeError("Gloo: connection closed by peer") from None
"""


@pytest.mark.parametrize("killed", [2, 0])
def test_a_killed_process_is_named_by_the_others(killed, started):
    found, made = started(CONSEQUENCES)
    for each in found:
        wait_until(lambda each=each: "together" in each.out.read_text())
    os.kill(found[killed].pid, signal.SIGKILL)
    codes = made.wait(*found)
    assert codes.pop(killed) == -signal.SIGKILL
    assert codes == [1, 1]
    told = f"error: {name(found, killed)} is gone: it was killed or has crashed: run the same command again"
    for index in {0, 1, 2} - {killed}:
        (line,) = found[index].lines()
        assert line.startswith(told)


def test_a_process_that_hangs_is_named_by_the_others(started):
    found, made = started(CONSEQUENCES, count=2, patience=1.0)
    wait_until(lambda: "together" in found[1].out.read_text())
    os.kill(found[1].pid, signal.SIGSTOP)
    try:
        assert made.wait(found[0]) == [1]
    finally:
        os.kill(found[1].pid, signal.SIGCONT)
    (line,) = found[0].lines()
    assert line.startswith(f"error: {name(found, 1)} has not answered for 1 s: run the same command again")
    # When it goes on, it ends too.
    assert made.wait(found[1]) == [1]

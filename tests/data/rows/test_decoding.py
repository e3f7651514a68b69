"""Files are read by other processes: the results, the problems of files, and workers that end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxboost.data import decoding
from jaxboost.data.problems import ProblemError
from tests.data.rows.decoded import Item, work


def results(items, workers=2):
    found = dict(decoding.call(work, items, workers=workers, threads=3))
    assert sorted(found) == list(range(len(items)))
    return [found[number] for number in range(len(items))]


def numbers(items, workers=2):
    return [each if isinstance(each, ProblemError) else int(each[0]) for each in results(items, workers)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_item_has_its_result(workers):
    items = [Item(number) for number in range(60)]
    items[7] = Item(7, "problem")
    items[9] = Item(9, "print")
    found = numbers(items, workers)
    problem = found.pop(7)
    assert found == [number for number in range(60) if number != 7]
    assert (str(problem), problem.found) == ("is wrong: do this", "is wrong")
    assert problem.for_trained() == "is wrong: change the file; the model was trained with data.nan=''"


def test_workers_are_other_processes_and_end_with_the_call():
    pids = set(numbers([Item(0, "pid")] * 40))
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert set(numbers([Item(0, "pid")] * 5, workers=0)) == {os.getpid()}


def test_a_worker_that_ends_takes_no_other_item_with_it(tmp_path):
    items = [Item(number) for number in range(12)]
    items[1] = Item(1, "crash")
    items[6] = Item(6, "crash once", str(tmp_path))
    found = numbers(items)
    problem = found.pop(1)
    assert found == [0, *range(2, 12)]
    assert "ended the process that read it (signal 11, SIGSEGV)" in str(problem)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_of_ours_is_raised(workers):
    with pytest.raises(KeyError, match="no such key") as error:
        numbers([Item(0), Item(1, "mistake")], workers)
    if workers:
        assert "in work" in error.value.__notes__[0]


def test_threads_read_if_no_process_can_be_started(monkeypatch, package_warnings):
    monkeypatch.setattr(decoding.sys, "executable", "/nowhere/python")
    assert numbers([Item(number) for number in range(9)]) == list(range(9))
    (text,) = package_warnings
    assert text.startswith("processes that read files cannot be started ([Errno 2] No such file")


def test_closing_ends_workers_at_once(tmp_path):
    items = [Item(0), *[Item(1, "wait", str(tmp_path))] * 20]
    found = decoding.call(work, items, workers=2, threads=1)
    assert next(found)[0] == 0
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    start = time.monotonic()
    found.close()
    assert time.monotonic() - start < 20
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


PROGRAM = """
import sys
from jaxboost.data import decoding
from tests.data.rows.decoded import Item, work
# Without the usual guard of a main script: it must not run again in the workers.
print("started", flush=True)
items = [Item(0), *[Item(1, "wait", sys.argv[1])] * 20]
list(decoding.call(work, items, workers=2, threads=1))
"""


def test_workers_end_if_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    folder = tmp_path / "pids"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True, env=environment)
    while len(list(folder.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[0] == "started\n"
    # They notice it when they answer; a sleeping one is ended here.
    for path in folder.iterdir():
        os.kill(int(path.name), signal.SIGKILL)


def test_small_folders_start_no_processes(monkeypatch):
    monkeypatch.setattr(decoding, "cores", lambda: 16)
    assert [decoding.workers_for(count, 2) for count in (0, 1, 199, 200, 450, 10**6)] == [0, 0, 0, 2, 4, 16]
    monkeypatch.setattr(decoding, "_available", lambda: 40 << 30)
    assert [decoding.workers_for(count, 3) for count in (1, 15, 16, 10**6)] == [0, 0, 2, 10]
    monkeypatch.setattr(decoding, "_available", lambda: 0)
    assert decoding.workers_for(10**6, 3) == 2
    monkeypatch.setattr(decoding, "cores", lambda: 1)
    assert decoding.workers_for(10**6, 2) == 0

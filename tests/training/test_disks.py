"""Disks that refuse to write: one line with the true cause, quickly, and the checkpoint before is whole."""

import contextlib
import errno
import json
import logging
import pathlib
import resource
import shutil
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tensorboardX.proto import event_pb2

from jaxboost import io
from jaxboost.errors import UserError
from jaxboost.evaluation import prediction_table
from jaxboost.runs import train
from jaxboost.training import cache, step
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer
from jaxboost.training.log import MetricsLog
from tests.finished_runs import colours
from tests.training.small_runs import assert_same
from tests.training.states import best_weights, progress_note, restore_state, train_iterator, train_state

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX"),
    # TensorStore's threads come with results after a failed write; the scripts leave that out.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def disk(tmp_path):
    """mount(options) -> a small file system in memory; only where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> pathlib.Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file systems can be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@contextlib.contextmanager
def file_limit(size: int):
    """No file may grow beyond it: as on a full disk, but for the reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(folder: pathlib.Path, count: int, before=lambda number: None) -> None:
    """Saves so many checkpoints, each with a new best; `before` gets the number of each."""
    with Checkpointer(folder) as checkpointer:
        for number in range(1, count + 1):
            before(number)
            checkpointer.save_best(number, *best_weights(number))
            best = Best(epoch=1, step=number, value=0.5)
            checkpointer.save_latest(train_state(number, number), train_iterator(), progress_note(best))


def save_until_refused(folder: pathlib.Path, before=lambda number: None) -> str:
    """What is said of the first checkpoint that is refused."""
    with pytest.raises(UserError) as error:
        save(folder, 40, before)
    return str(error.value)


def assert_whole(folder: pathlib.Path, message: str) -> None:
    """The checkpoint that the message names is there and whole, or there is none."""
    with Checkpointer(folder) as checkpointer:
        if "there is no checkpoint yet" in message:
            assert checkpointer.latest_step() is None
            return
        named = int(message.split("the checkpoint of step ")[1].split(" ")[0])
        state, progress = restore_state(checkpointer)
        assert_same(state, train_state(named, named))
        assert_same(checkpointer.restore_best(progress.best.step, *best_weights(0)), best_weights(named))


# Bytes and entries: in files, in folders, in the first save and in later ones. Orbax meets them in different threads.
@pytest.mark.parametrize("room", ["size=48k", "size=140k", "size=300k", "nr_inodes=20", "nr_inodes=50", "nr_inodes=90"])
@pytest.mark.timeout(60)
def test_a_full_disk(room, disk):
    folder = disk(f"{room}{'' if 'size' in room else ',size=50m'}")
    message = save_until_refused(folder / "run")
    assert message.startswith(f"{folder / 'run'} cannot be written (No space left on device): make room; then run the")
    subprocess.run(["mount", "-o", "remount,size=50m,nr_inodes=10000", str(folder)], check=True)
    assert_whole(folder / "run", message)


@pytest.mark.timeout(60)
def test_a_disk_that_becomes_read_only(disk):
    folder = disk("size=50m")

    def protect(number: int) -> None:
        # The last save may still write, and then the system refuses.
        while (
            number == 3 and subprocess.run(["mount", "-o", "remount,ro", str(folder)], capture_output=True).returncode
        ):
            time.sleep(0.05)

    message = save_until_refused(folder / "run", protect)
    assert "cannot be written (Read-only file system): the file system is read-only: mount it for writing" in message
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    assert_whole(folder / "run", message)


@pytest.mark.timeout(60)
def test_a_limit_on_files(tmp_path):
    def limit(number: int) -> None:
        if number == 2:
            stack.enter_context(file_limit(300))

    with contextlib.ExitStack() as stack:
        message = save_until_refused(tmp_path / "run", limit)
    assert "cannot be written (File too large): the size of files is limited: raise the limit (`ulimit -f`)" in message
    assert_whole(tmp_path / "run", message)


@pytest.mark.timeout(60)
def test_a_folder_that_is_gone(tmp_path):
    message = save_until_refused(
        tmp_path / "run", lambda number: shutil.rmtree(tmp_path / "run") if number == 3 else None
    )
    assert "cannot be written (No such file or directory): the folder is gone: it was removed, moved or unm" in message
    # A removal that is still going on leaves what looks like a checkpoint.
    assert "whole" not in message
    assert "checkpoint" not in str(io.refused("run", FileNotFoundError(errno.ENOENT, "gone"), "; checkpoint is whole"))


@pytest.mark.parametrize("text", ["NOT_FOUND: Error opening a driver", "No ArrayMetadata found for process_index=0"])
def test_a_folder_that_is_removed_while_it_is_written_to(text, tmp_path, monkeypatch):
    """What Orbax makes of it depends on how far the removal has come."""

    def refuse():
        raise ValueError(text)

    with pytest.raises(UserError, match=r"the folder is gone: it was removed, moved or unmounted$"):  # noqa: SIM117
        with Checkpointer(tmp_path) as checkpointer:
            monkeypatch.setattr(checkpointer._latest, "wait_until_finished", refuse)


@pytest.mark.timeout(120)
def test_a_clock_that_jumps(tmp_path, monkeypatch):
    """Each reading may be days before or after the last: nothing that waits may go by it."""
    now, rng, shift = time.time, np.random.default_rng(0), [0.0]

    def jumping() -> float:
        if rng.random() < 0.2:
            shift[0] = rng.uniform(-10, 10) * 86400
        return now() + shift[0]

    monkeypatch.setattr(time, "time", jumping)
    save(tmp_path, 10)
    assert_whole(tmp_path, "the checkpoint of step 10 is whole")


# What refuses in which function of a run -> what the message names, and the checkpoint that is whole.
PLACES = {
    "config.json": ((train.workdir, "create"), "run cannot be written", "there is no checkpoint yet"),
    "the first record": ((MetricsLog, "__init__"), "tensorboard cannot be written", "there is no checkpoint yet"),
    "a record": ((MetricsLog, "write"), "metrics.jsonl cannot be written", "there is no checkpoint yet"),
    "predictions": ((prediction_table, "write_medmnist"), "run cannot be written", "the checkpoint of step 1 is whole"),
    "the result": ((train.workdir, "write_result"), "run cannot be written", "the checkpoint of step 1 is whole"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_a_run_writes_beside_its_checkpoints(place, tmp_path, monkeypatch):
    (owner, name), what, kept = PLACES[place]
    function = getattr(owner, name)

    def limited(*arguments, **options):
        with file_limit(0):
            return function(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, limited)
        with pytest.raises(UserError) as error:
            colours(tmp_path / "data", tmp_path / "run")
    assert what in str(error.value)
    for words in ("(File too large)", "`ulimit -f`", "then run the same command again", kept):
        assert words in str(error.value)
    colours(tmp_path / "data", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def test_a_runs_folder_that_is_removed_is_not_made_again(tmp_path, monkeypatch):
    put = step.put

    def remove(*arguments):
        shutil.rmtree(tmp_path / "run")
        return put(*arguments)

    monkeypatch.setattr(step, "put", remove)
    with pytest.raises(UserError, match="run is gone: it was removed, moved or unmounted during the run"):
        colours(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_event_file_has_what_was_written(tmp_path):
    """Records of TensorFlow's format: length, its checksum, an event, its checksum."""
    with MetricsLog(tmp_path, resume_step=4) as log:
        log.write(5, {"loss": 0.5, "rate": None})
        log.write(6, {"loss": 0.25, "auc": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert events[1].session_log.status == event_pb2.SessionLog.START
    assert events[1].step == 5
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(5, "loss", 0.5), (6, "loss", 0.25), (6, "auc", 1.0)]


@pytest.fixture
def cache_settings():
    """Gives the process its own cache of compiled programs back."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    with warnings.catch_warnings():
        yield lambda folder: jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_that_cannot_be_kept_are_no_obstacle(cache_settings, disk, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxboost"), "propagate", True)
    (tmp_path / "file").touch()
    cache_settings(tmp_path / "file" / "cache")
    cache.keep_compiled_programs(True)
    (record,) = caplog.records
    assert "file/cache cannot be written (Not a directory)" in record.getMessage()
    assert not jax.config.jax_enable_compilation_cache
    caplog.clear()
    # What others have left in a folder that is read-only is used.
    cache_settings(disk("size=1m,ro"))
    cache.keep_compiled_programs(True)
    (record,) = caplog.records
    assert "cannot be written (Read-only file system)" in record.getMessage()
    assert jax.config.jax_enable_compilation_cache
    caplog.clear()
    cache_settings(tmp_path / "new" / "cache")
    cache.keep_compiled_programs(True)
    assert not caplog.records
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def test_compiled_programs_are_not_kept_where_they_should_not(cache_settings, tmp_path):
    cache_settings(tmp_path / "cache")
    cache.keep_compiled_programs(False)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1))
    assert not jax.config.jax_enable_compilation_cache
    assert not (tmp_path / "cache").exists()


def test_the_system_s_errors_in_other_words(tmp_path):
    """Of TensorStore and safetensors; a text without a number stays as it is."""
    found = io.os_error(ValueError("RESOURCE_EXHAUSTED: Error writing \"x\": no [os_error_code='28']"))
    assert found.errno == errno.ENOSPC
    assert "(No space left on device): make room" in str(io.refused("x", found))
    assert "(Error writing x): find out why the system refuses it" in str(
        io.refused("y", io.os_error(ValueError("Error writing x")))
    )
    with file_limit(1), pytest.raises(SafetensorError) as error:
        save_file({"x": np.zeros(100)}, tmp_path / "x")
    assert io.os_error(error.value).errno == errno.EFBIG
    assert io.os_error(ValueError("shapes differ")) is None
    assert io.os_error(KeyError("x")) is None
    assert "(timed out): find out" in str(io.refused("x", TimeoutError("timed out")))

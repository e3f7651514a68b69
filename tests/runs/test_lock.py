"""One process at a time on a run's folder, with true second processes where they matter."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxboost.errors import UserError
from jaxboost.runs import cross_validation, lock, train
from jaxboost.training.recording import Recording
from tests.scripts import REPOSITORY, run_inside
from tests.training.own_folders import make_config, write_pictures
from tests.training.small_runs import small_config

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs

# Holds the lock of the folder that is its argument until its standard input ends.
HOLDER = """
import pathlib, sys
from jaxboost.runs import lock
with lock.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_ends(holder, few_lidc_root, tmp_path):
    folder = tmp_path / "run"
    start = time.strftime("%Y-%m-%dT")
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(small_config(few_lidc_root), folder)
    message = str(error.value)
    assert f"{folder} is in use by the process {holder.pid} on {socket.gethostname()} since {start}" in message
    assert f"remove {folder / lock.FILE}" in message
    assert [path.name for path in folder.iterdir()] == [lock.FILE]
    holder.communicate("end\n", timeout=60)
    with lock.locked(folder):
        pass


def test_a_lock_whose_owner_was_killed_is_taken_over(holder, tmp_path, caplog):
    folder = tmp_path / "run"
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    assert (folder / lock.FILE).exists()
    with caplog.at_level("INFO", "jaxboost"), lock.locked(folder) as held:
        held.check()
        assert f"the process {holder.pid} on {socket.gethostname()}, which used it, has ended" in caplog.text
        assert f"pid={os.getpid()}\n" in (folder / lock.FILE).read_text()
    assert not folder.exists() or not list(folder.iterdir())


def written(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    """A lock file as this process would write it, with other values."""
    with lock.locked(folder):
        text = (folder / lock.FILE).read_text()
    for name, value in changes.items():
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
    folder.mkdir(exist_ok=True)
    (folder / lock.FILE).write_text(text)
    return folder / lock.FILE


def test_another_process_with_the_number_of_the_owner_is_not_the_owner(tmp_path):
    """Numbers come again, after a start of the machine at the latest."""
    written(tmp_path / "run", start=12345, token="0" * 32)
    with lock.locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 64, b"{}", b"filelock/2\npid=1"], ids=["empty", "NUL", "JSON", "half"]
)
def test_what_a_power_cut_left_of_a_lock_is_no_obstacle(content, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.5)
    (tmp_path / lock.FILE).write_bytes(content)
    with lock.locked(tmp_path):
        assert f"pid={os.getpid()}\n" in (tmp_path / lock.FILE).read_text()


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(lock, "_LEASE", 1.5)
    monkeypatch.setattr(lock, "_HEARTBEAT", 0.3)
    monkeypatch.setattr(lock, "_POLL", 0.1)


def test_an_owner_on_another_machine_that_gives_no_sign_is_gone(short, tmp_path, caplog):
    file = written(tmp_path / "run", host="elsewhere", token="0" * 32)
    start = time.monotonic()
    with caplog.at_level("INFO", "jaxboost"), lock.locked(tmp_path / "run") as held:
        held.check()
    assert time.monotonic() - start >= 1.5
    assert "on elsewhere" in caplog.text
    assert "to see whether it is still running" in caplog.text
    assert not file.exists()


def test_an_owner_on_another_machine_that_gives_signs_is_there(short, tmp_path):
    file = written(tmp_path / "run", host="elsewhere", token="0" * 32)
    touching = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(0.2)",
            str(file),
        ]
    )
    try:
        with (
            pytest.raises(UserError, match=r"in use by the process \d+ on elsewhere since"),
            lock.locked(tmp_path / "run"),
        ):
            pass
    finally:
        touching.kill()
        touching.wait()
    assert "host=elsewhere\n" in file.read_text()


def test_the_lock_is_this_processs_only_while_its_file_says_so(tmp_path):
    folder = tmp_path / "run"
    with lock.locked(folder) as held:
        held.check()
        mine = (folder / lock.FILE).read_text()
        (folder / lock.FILE).write_text(re.sub(r"token=\w+", "token=" + "0" * 32, mine))
        with pytest.raises(UserError, match=r"took over .*run during the run: this process stops"):
            held.check()
        (folder / lock.FILE).unlink()
        with pytest.raises(UserError, match=r"run\.lock was removed during the run"):
            held.check()
        folder.rmdir()
        with pytest.raises(UserError, match="run is gone: it was removed, moved or unmounted"):
            held.check()


def test_twice_in_one_process(tmp_path):
    with (
        lock.locked(tmp_path / "run"),
        pytest.raises(UserError, match=f"in use by the process {os.getpid()}"),
        lock.locked(tmp_path / "run"),
    ):
        pass


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    with pytest.raises(UserError, match="a mistake"), lock.locked(tmp_path / "a" / "b" / "run"):
        raise UserError("a mistake")
    assert list(tmp_path.iterdir()) == []
    with lock.locked(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["config.json"]


def test_a_folder_in_the_place_of_the_lock(tmp_path):
    (tmp_path / lock.FILE).mkdir()
    with pytest.raises(UserError, match=r"run\.lock is a folder: remove it"), lock.locked(tmp_path):
        pass


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"run cannot be written \(Not a directory\): the folder is gone"),
        lock.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_the_run_stops_where_another_process_took_its_folder(few_lidc_root, tmp_path, monkeypatch):
    """The checkpoints of that process stay as they are."""
    folder, validate = tmp_path / "run", Recording.validate

    def taken(self, *arguments):
        text = (folder / lock.FILE).read_text()
        (folder / lock.FILE).write_text(re.sub(r"token=\w+", "token=" + "0" * 32, text))
        validate(self, *arguments)

    monkeypatch.setattr(Recording, "validate", taken)
    with pytest.raises(UserError, match="this process stops, because two processes would damage the checkpoints"):
        train.train_and_evaluate(small_config(few_lidc_root, {"train.max_steps": 1}), folder)
    assert not list((folder / "checkpoints" / "latest").iterdir())
    assert not list((folder / "checkpoints" / "best").iterdir())


def test_folds_have_locks_of_their_own(request, tmp_path):
    """Two processes may share the folds of a cross-validation; what they both write is written whole."""
    pictures = request.getfixturevalue("class_folders")
    options = {"data__folds": 2, "data__val_share": 0.25, "train__epochs": 1, "eval__bootstrap": 5}
    with lock.locked(tmp_path / "fold1"):
        config = make_config(pictures, data__fold=0, **options)
        assert cross_validation.train_and_evaluate(config, tmp_path) is None
        assert (tmp_path / "fold0" / "result.json").exists()
        for fold in (1, -1):
            with pytest.raises(UserError, match=r"/fold1 is in use by the process"):
                cross_validation.train_and_evaluate(make_config(pictures, data__fold=fold, **options), tmp_path)
    # Given by hand, the folds may be the ones that an earlier command left there.
    config = make_config(pictures, data__folds_file=str(tmp_path / "folds.csv"), **options)
    before = (tmp_path / "folds.csv").read_bytes()
    with pytest.raises(UserError, match="another config"):
        cross_validation.train_and_evaluate(config, tmp_path)
    result = cross_validation.train_and_evaluate(make_config(pictures, **options), tmp_path)
    assert len(result["folds"]) == 2
    assert (tmp_path / "folds.csv").read_bytes() == before


# Runs train.py with its arguments once a line comes; all that takes long before it locks the folder is done by then.
STARTER = """
import runpy, sys
import jaxboost.runs.train
print("ready", flush=True)
sys.stdin.readline()
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def test_two_commands_at_once_make_one_run(few_lidc_root, tmp_path):
    """Both start together; one is refused in one line, and the other's result is whole."""
    arguments = [
        *("--config=configs/quickstart.py", "--config.model.backbone=vit3d_tiny"),
        *("--config.boost.kind=none", "--config.train.max_steps=1", "--config.eval.bootstrap=10"),
        *("--config.train.batch_size=16", "--config.eval.batch_size=24"),
        *(f"--config.data.root={few_lidc_root}", f"--workdir={tmp_path / 'run'}"),
    ]
    other = subprocess.Popen(
        [sys.executable, "-c", STARTER, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("start\n")
    other.stdin.flush()
    ours = run_inside("train.py", *arguments)
    _, stderr = other.communicate(timeout=300)
    codes = {other.returncode: stderr, ours.returncode: ours.stderr}
    assert sorted(codes) in ([0], [0, 2]), codes
    if 2 in codes:
        (line,) = codes[2].splitlines()
        assert line.startswith("error: ")
        assert "is in use by the process" in line
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / lock.FILE).exists()

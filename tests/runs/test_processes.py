"""One run by several processes: the same figures as by one, stopped and continued by another number of processes."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxboost import processes, stopping
from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.errors import UserError
from jaxboost.io import read_json
from jaxboost.processes import group
from jaxboost.runs import assembly, together, train
from jaxboost.runs.lock import RunLock
from jaxboost.runs.result import VARYING
from jaxboost.training.checkpoints.checkpointer import Checkpointer
from tests import metrics
from tests.processes.starts import Forks, Started, forks, free_port
from tests.scripts import REPOSITORY, devices
from tests.training.small_runs import small_config

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# Six steps, of which three are an epoch. What is random in a step goes by a sample's row in the batch of all processes.
CHANGES = {
    "augment.volume_flips": True,
    "mix.mixup": 0.2,
    "model.drop_path": 0.2,
    "train.max_steps": 6,
    "train.log_every": 1,
    "train.ema": 0.5,
}
# As `small_config` has it.
COMMAND = (
    "train",
    "--config=quickstart",
    "--config.model.backbone=vit3d_tiny",
    "--config.boost.block=random",
    "--config.boost.family=llama-tiny",
    "--config.boost.layers=0,",
    "--config.boost.source=",
    "--config.boost.convert=False",
    "--config.optim.warmup_epochs=0.0",
    "--config.train.batch_size=16",
    "--config.eval.batch_size=24",
    "--config.eval.bootstrap=20",
    *(f"--config.{name}={value}" for name, value in CHANGES.items()),
)
INFO = DatasetInfo(name="x", task="binary-class", classes=("a", "b"), channels=1, ndim=2, size=4)
# Sends SIGTERM to itself between two steps.
STOPPED = """
import os, signal
from jaxboost.training import step
put, calls = step.put, []
def put_or_stop(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.{signal})
    return put(*arguments)
step.put = put_or_stop
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Forks]:
    modules = ("jaxboost.runs.cross_validation", "tensorboardX", "jax.experimental.multihost_utils")
    with forks(tmp_path_factory.mktemp("forks"), *modules) as found:
        yield found


def start(
    made: Forks,
    root: pathlib.Path,
    workdir: object,
    *more: object,
    count: int = 2,
    stopped: int | None = None,
    how: str = "SIGTERM",
    of_one: tuple[str, ...] = (),
    **each: Callable[[int], Any],
) -> list[Started]:
    """Starts the processes of a run.

    Args:
      more: arguments of all.
      stopped: the process that sends the signal `how` to itself before its fourth step.
      of_one: arguments of process 1.
      each: gives an argument of `Forks.start` by the number of the process.
    """
    port = free_port()
    return [
        made.start(
            (
                *COMMAND,
                f"--config.data.root={root}",
                f"--workdir={workdir}",
                "--distributed",
                f"--coordinator=127.0.0.1:{port}",
                f"--process_count={count}",
                f"--process_id={index}",
                *more,
                *(of_one if index == 1 else ()),
            ),
            before=STOPPED.format(signal=how) if index == stopped else "",
            **{name: values(index) for name, values in each.items()},
        )
        for index in range(count)
    ]


def records(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    return {(record["step"], name): value for record in metrics.records(workdir) for name, value in record.items()}


def predictions(workdir: pathlib.Path) -> np.ndarray:
    tables = [(workdir / "predictions" / f"{name}.csv").read_text().splitlines()[1:] for name in ("val", "test")]
    return np.array([[float(value) for value in line.split(",")[-2:]] for table in tables for line in table])


def assert_same_run(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Losses, figures and predictions agree to 1e-6, and so do the numbers in result.json."""
    left, right = records(ours), records(theirs)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value == pytest.approx(right[key], rel=1e-5 if key[1] == "grad_norm" else 1e-6, abs=1e-6), key
    np.testing.assert_allclose(predictions(ours), predictions(theirs), atol=1e-6)
    left, right = (numbers(read_json(workdir / "result.json")) for workdir in (ours, theirs))
    assert left == pytest.approx(right, abs=1e-6)


def numbers(tree: object, path: str = "") -> dict[str, float]:
    """Path -> number in a tree of JSON; without what a run costs."""
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        return {path: float(tree)}
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {
        name: value
        for key, entry in entries
        if key not in VARYING
        for name, value in numbers(entry, f"{path}.{key}").items()
    }


@pytest.fixture(scope="module")
def whole(few_lidc_root, tmp_path_factory) -> pathlib.Path:
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.train_and_evaluate(small_config(few_lidc_root, CHANGES), workdir)
    return workdir


def test_two_processes_begin_and_one_goes_on(made, whole, few_lidc_root, tmp_path):
    """Two processes of two devices each, which also split the trained weights; then one process with one device."""
    workdir = tmp_path / "run"
    started = start(made, few_lidc_root, workdir, "--config.train.fsdp", stopped=1, env=lambda _: devices(2))
    assert made.wait(*started) == [0, 0], [each.lines() for each in started]
    first, second = (each.out.read_text().splitlines() for each in started)
    for index, lines in enumerate((first, second)):
        (line,) = [line for line in lines if line.startswith(f"process {index} of 2 (")]
        assert line.count("cpu:") == 2
    # Only the first process logs.
    assert any("4 x cpu in 2 processes, seed 0" in line for line in first)
    assert "stopped by SIGTERM after step " in first[-1]
    assert [line for line in second if "loss" in line or "stopped" in line] == []
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
    ]
    reached = max(int(path.name) for path in (workdir / "checkpoints/latest").iterdir())
    assert 3 <= reached <= 5
    assert f"after step {reached}, saved" in first[-1]
    train.train_and_evaluate(small_config(few_lidc_root, CHANGES), workdir)
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_four_processes_one_of_which_is_killed(made, whole, few_lidc_root, tmp_path):
    """What is left goes on in two processes up to the result, which is that of one."""
    workdir = tmp_path / "run"
    started = start(
        made, few_lidc_root, workdir, "--config.train.checkpoint_every=1", count=4, stopped=2, how="SIGKILL"
    )
    codes = made.wait(*started)
    assert codes == [1, 1, -9, 1]
    for index in (0, 1, 3):
        assert (
            f"process 2 of 4 ({os.uname().nodename}, pid {started[2].pid}) is gone: it was killed"
            in started[index].err.read_text()
        )
    started = start(made, few_lidc_root, workdir, env=lambda _: devices(2))
    assert made.wait(*started) == [0, 0], [each.lines() for each in started]
    assert "resumed from step " in started[0].out.read_text()
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_srun_is_the_same_to_the_bit(made, few_lidc_root, tmp_path, monkeypatch):
    """Under a real Slurm all is found in the environment; without --distributed the tasks are refused."""
    slurm_cluster = pytest.importorskip("tests.studies.slurm_cluster")
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    by_hand, by_srun = tmp_path / "hand", tmp_path / "srun"
    assert made.wait(*start(made, few_lidc_root, by_hand)) == [0, 0]
    python = (sys.executable, "-m", "jaxboost", *COMMAND, f"--config.data.root={few_lidc_root}", f"--workdir={by_srun}")
    with slurm_cluster.cluster(tmp_path / "slurm") as config:
        monkeypatch.setenv("SLURM_CONF", str(config))
        srun = ("srun", "--nodes=1", "--ntasks=2", "--overcommit")
        refused = subprocess.run([*srun, *python], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        done = subprocess.run(
            [*srun, *python, "--distributed"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
        )
    assert refused.returncode == 2
    assert "give --distributed to train it together" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert "2 x cpu in 2 processes" in done.stdout
    assert records(by_srun) == records(by_hand)
    np.testing.assert_array_equal(predictions(by_srun), predictions(by_hand))


def test_mistakes_are_told_by_all_processes_and_leave_nothing(made, few_lidc_root, tmp_path):
    folders = [tmp_path / name for name in ("here", "there", "used")]
    for folder in folders:
        folder.mkdir()
    lock = RunLock(folders[2])
    lock.acquire()
    cases = [
        (
            start(made, few_lidc_root, "run", of_one=("--config.train.batch_size=12",)),
            "process 1 of 2 (%s) differs from process 0 in the command: train.batch_size (process 1: 12, ",
        ),
        (
            start(made, few_lidc_root, folders[0] / "a", "--config.train.batch_size=15"),
            "config field train.batch_size: 15 is no multiple of the 2 devices of all 2 processes",
        ),
        (
            start(made, few_lidc_root, "run", "--config.train.deterministic=true"),
            "config field train.deterministic: it does not go together with --distributed, where sums over the",
        ),
        (
            start(made, few_lidc_root, "run", cwd=lambda index: folders[index]),
            "run on HOST is not the folder of process 0, whose run.lock it does not have: give a --workdir on a disk",
        ),
        (
            start(made, few_lidc_root, folders[2]),
            f"{folders[2]} is in use by the process {os.getpid()} on HOST since ",
        ),
    ]
    try:
        for started, message in cases:
            assert made.wait(*started) == [2, 2], [each.err.read_text() for each in started]
            host = f"{os.uname().nodename}, pid {started[1].pid}"
            for each in started:
                (line,) = each.lines()
                assert line.startswith("error: ")
                assert message.replace("HOST", os.uname().nodename).replace("%s", host) in line
    finally:
        lock.release()
    assert sorted(tmp_path.rglob("*")) == folders


def test_other_data_or_weights_of_one_are_found(monkeypatch):
    """What is compared before anything is written: every image and label, and the fingerprints of the weights."""

    def fingerprint(images, labels, weights):
        found = []
        both = group.Group(0, 2)
        both.names = ["process 0 of 2 (a, pid 1)", "process 1 of 2 (b, pid 2)"]
        both.member = SimpleNamespace(
            gather=lambda name, value: found.append(value) or [value, value], send=lambda message: None
        )
        monkeypatch.setattr(group, "_group", both)
        split = Split(images=images, labels=labels)
        together.check_same_run(Dataset(info=INFO, splits={"train": split}, baselines={}), {"block": weights})
        return both, found[0]

    images, labels = np.zeros((5, 4, 4, 1), np.uint8), np.zeros((5, 1), np.int64)
    both, same = fingerprint(images, labels, "ab" * 32)
    other_image, other_label = images.copy(), labels.copy()
    other_image[4, 3, 3] = other_label[4] = 1
    for changed in ((other_image, labels, "ab" * 32), (images, other_label, "ab" * 32), (images, labels, "cd" * 32)):
        _, other = fingerprint(*changed)
        ((name, value),) = (item for item in other.items() if item not in same.items())
        both.member.gather = lambda name, value, other=other: [value, other]
        monkeypatch.setattr(group, "_group", both)
        with pytest.raises(UserError) as error:
            processes.check_same("the data or the weights", same, "put the same files")
        expected = f"{both.names[1]} differs from process 0 in the data or the weights: {name} (process 1: {value}, "
        assert str(error.value).startswith(expected)


def test_a_signal_before_the_first_step_is_raised_where_others_wait(few_lidc_root, tmp_path, monkeypatch):
    """The others are not asked, so they have to hear it; a run of one process says it and returns."""
    both = group.Group(0, 2)
    both.member = SimpleNamespace(gather=lambda name, value: [value, value], send=lambda message: None)
    monkeypatch.setattr(group, "_group", both)
    monkeypatch.setattr(assembly, "assemble", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(stopping.Stopped):
        train.train_and_evaluate(small_config(few_lidc_root, CHANGES), tmp_path / "run")


def test_what_a_process_does_alone_is_told(monkeypatch):
    both, sent = group.Group(0, 2), []
    both.member = SimpleNamespace(gather=lambda name, value: [value, value], send=sent.append)
    monkeypatch.setattr(group, "_group", both)
    with processes.working("reads the data"):
        assert processes.first("converted weights", lambda: 3) == 3
    words = ["reads the data", "does alone what all need: converted weights", "reads the data", ""]
    assert sent == [{"kind": "work", "what": each} for each in words]


def test_one_process_decides_which_best_weights_are_removed(monkeypatch):
    """Orbax deletes in all processes, which wait for each other; here process 1 already sees another `latest`."""
    deleted, both = [], group.Group(1, 2)
    both.member = SimpleNamespace(gather=lambda name, value: [[1, 2], value], send=lambda message: None)
    monkeypatch.setattr(group, "_group", both)
    checkpointer = object.__new__(Checkpointer)
    checkpointer._best = SimpleNamespace(all_steps=lambda: [1, 2, 3], delete=deleted.append)
    checkpointer._latest, checkpointer._best_of = SimpleNamespace(all_steps=lambda: [4]), {4: 2}
    checkpointer._last_best = 3
    checkpointer._remove_unneeded()
    assert deleted == [1, 2]

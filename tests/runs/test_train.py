"""train.py as a user runs it: resuming, stopping, finishing, and its mistakes."""

import json
import logging
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from medmnist.evaluator import getACC, getAUC

from configs import quickstart
from jaxboost import convert, data
from jaxboost.errors import UserError
from jaxboost.runs import assembly, train
from jaxboost.runs.result import VARYING
from jaxboost.training import mfu
from jaxboost.training.clock import PARTS
from tests.metrics import records
from tests.reference.llama_checkpoints import tiny_llama, write_safetensors
from tests.scripts import (
    KILL,
    REPOSITORY,
    assert_mistake,
    devices,
    interrupted_training,
    run_each,
    run_inside,
    run_script,
)
from tests.training.small_runs import small_config

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs

# One epoch of six steps of a small ViT3D with a random block, and a checkpoint after the third.
SMALL = (
    "train.py",
    "--config=configs/quickstart.py",
    "--config.model.backbone=vit3d_tiny",
    "--config.boost.block=random",
    "--config.boost.family=llama-tiny",
    "--config.boost.layers=0",
    "--config.boost.source=",
    "--config.optim.warmup_epochs=0.0",
    "--config.train.batch_size=8",
    "--config.eval.batch_size=24",
    "--config.train.max_steps=6",
    "--config.train.checkpoint_every=3",
    "--config.train.log_every=1",
    "--config.eval.bootstrap=20",
)

KILLED_IN_FIFTH_STEP = interrupted_training(5, "checkpoints/latest/3", KILL)
# No file may grow beyond 50 kB from then on: the operating system refuses to write, as on a full disk.
FULL_FROM_FIFTH_STEP = interrupted_training(
    5, "checkpoints/latest/3", "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
)


def _small(root: pathlib.Path, workdir: pathlib.Path, *more: str) -> tuple[str, ...]:
    return (*SMALL, f"--config.data.root={root}", f"--workdir={workdir}", *more)


def _seconds_by_part(workdir: pathlib.Path) -> dict[str, float]:
    """Checks that the parts add up to the whole, in the result and in the last record."""
    result = json.loads((workdir / "result.json").read_text())
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    recorded = {name: last[f"seconds_{name}"] for name in PARTS}
    for parts, seconds, rounding in (
        (result["seconds_by_part"], result["seconds"], 0.1),
        (recorded, last["seconds"], 0.04),
    ):
        assert tuple(parts) == PARTS
        assert sum(parts.values()) == pytest.approx(seconds, abs=rounding)
        assert all(parts[name] > 0 for name in ("start", "compile", "step", "evaluation", "checkpoints"))
    assert all(result["seconds_by_part"][name] >= recorded[name] for name in PARTS)
    return result["seconds_by_part"]


def _state(workdir: pathlib.Path) -> dict:
    folder = max((workdir / "checkpoints/latest").glob("[0-9]*"), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute() / "state")


@pytest.fixture(scope="module")
def uninterrupted(few_lidc_root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    process = run_script(*_small(few_lidc_root, workdir))
    assert process.returncode == 0, process.stderr
    return workdir, process


def test_kill_and_resume_is_bitwise_equal(uninterrupted, few_lidc_root, tmp_path):
    whole, _ = uninterrupted
    workdir = tmp_path / "killed"
    killed = run_script("-c", KILLED_IN_FIFTH_STEP, workdir, *_small(few_lidc_root, workdir)[1:])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (workdir / "result.json").exists()

    resumed = run_inside(*_small(few_lidc_root, workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step 3" in resumed.stdout
    assert records(workdir) == records(whole)
    parts = {folder: _seconds_by_part(folder) for folder in (workdir, whole)}
    # The fourth step was recorded, and is done again after the third.
    assert parts[workdir]["lost"] > 0 == parts[whole]["lost"]
    ours, theirs = ([*_leaves(_state(folder))] for folder in (workdir, whole))
    assert len(ours) > 50
    for (path, a), (other, b) in zip(ours, theirs, strict=True):
        assert path == other
        np.testing.assert_array_equal(a, b, err_msg=path)
    for file in (whole / "predictions").iterdir():
        assert (workdir / "predictions" / file.name).read_bytes() == file.read_bytes()


# The weights of the best epoch are written at once, after step 6; the state in the background, which tells at step 9
# where an epoch has twelve steps.
@pytest.mark.parametrize(("steps", "batch_size"), [(6, 8), (12, 4)])
def test_full_disk_leaves_the_last_checkpoint(steps, batch_size, few_lidc_root, tmp_path):
    workdir = tmp_path / "full"
    options = (f"--config.train.max_steps={steps}", f"--config.train.batch_size={batch_size}")
    arguments = _small(few_lidc_root, workdir, *options)
    full = run_script("-c", FULL_FROM_FIFTH_STEP, workdir, *arguments[1:])
    assert_mistake(full, "cannot be written", "File too large", "ulimit -f", "the checkpoint of step 3 is whole")
    assert not (workdir / "result.json").exists()

    again = run_inside(*arguments)
    assert again.returncode == 0, again.stderr
    assert "resumed from step 3" in again.stdout
    assert json.loads((workdir / "result.json").read_text())["steps"] == steps


def _leaves(tree, path=""):
    if isinstance(tree, dict):
        for name in sorted(tree):
            yield from _leaves(tree[name], f"{path}/{name}")
    elif isinstance(tree, list | tuple):
        for index, entry in enumerate(tree):
            yield from _leaves(entry, f"{path}/{index}")
    elif tree is not None:
        yield path, np.asarray(tree)


def test_result_and_predictions(uninterrupted, few_lidc_root):
    workdir, process = uninterrupted
    result = json.loads((workdir / "result.json").read_text())
    dataset = data.load("lidcshapes3d", size=28, root=str(few_lidc_root))
    assert result["splits"] == {name: len(split) for name, split in dataset.splits.items()}
    assert result["protocol"] == "validation"
    assert result["selection"]["split"] == "val"
    assert result["selection"]["step"] == 6
    assert result["block"]["source"] == "random"
    assert len(result["block"]["sha256"]) == 64
    labels = dataset.splits["test"].labels
    (file,) = (workdir / "predictions").glob("lidcshapes3d_test_*@seed0.csv")
    table = np.loadtxt(file, delimiter=",")
    np.testing.assert_array_equal(table[:, 0], np.arange(len(labels)))
    np.testing.assert_allclose(table[:, 1:].sum(1), 1, rtol=1e-5)
    assert result["test"]["auc"] == pytest.approx(getAUC(labels, table[:, 1:], "binary-class"))
    assert result["test"]["acc"] == pytest.approx(getACC(labels, table[:, 1:], "binary-class"))
    assert f"[AUC]{result['test']['auc']:.3f}_[ACC]{result['test']['acc']:.3f}" in file.name
    low, high = result["test"]["ci95"]["auc"]
    assert low <= result["test"]["auc"] <= high
    # Patients have several nodules, so patients are drawn.
    methods = result["test"]["ci_method"]
    assert set(methods) == set(result["test"]["ci95"]) == {"acc", "auc", "sensitivity", "specificity"}
    assert {method.rpartition("-")[2] for method in methods.values()} == {"patients"}
    assert re.search(r"test \(n = .* AUC [.\d]+ \[[.\d]+, [.\d]+\], sensitivity [.\d]+ \[", process.stdout)
    assert 0.7 < result["baselines"]["nodule volume"]["auc"] < 0.95
    assert "nodule volume alone: AUC" in process.stdout
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))


def test_checkpoints_hold_no_frozen_weights(uninterrupted):
    workdir, _ = uninterrupted
    state = _state(workdir)
    assert set(state["params"]["boost"]) == {"encode", "decode"}
    paths = {path for path, _ in _leaves(state)}
    assert not any("block/" in path for path in paths)
    with ocp.StandardCheckpointer() as checkpointer:
        best = checkpointer.restore((workdir / "checkpoints/best/6/params").absolute())
    assert set(best["boost"]) == {"encode", "decode"}


def test_finished_run_is_not_run_again(uninterrupted, few_lidc_root):
    workdir, first = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = run_inside(*_small(few_lidc_root, workdir))
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert [line for line in first.stdout.splitlines() if line.startswith("test")] == [
        line for line in again.stdout.splitlines() if line.startswith("test")
    ]
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_finished_run_does_not_answer_for_another_block(uninterrupted, few_lidc_root, tmp_path):
    workdir, _ = uninterrupted
    config = _config(few_lidc_root, **{"boost.block": str(tmp_path), "boost.convert": True, "train.batch_size": 8})
    with pytest.raises(UserError, match="finished run with the block from random"):
        train.train_and_evaluate(config, workdir)


def test_workdir_that_is_a_file(few_lidc_root, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file: give another --workdir"):
        train.train_and_evaluate(quickstart.get_config(), tmp_path / "run")


def test_workdir_of_another_config(uninterrupted, few_lidc_root):
    workdir, _ = uninterrupted
    process = run_inside(*_small(few_lidc_root, workdir, "--config.optim.lr=1e-3"))
    assert_mistake(process, "another config", "optim.lr (0.0005 there, 0.001 now)", "--workdir")


def test_sigterm_saves_and_stops_cleanly(few_lidc_root, tmp_path):
    workdir = tmp_path / "run"
    arguments = _small(few_lidc_root, workdir, "--config.train.max_steps=0", "--config.train.epochs=500")
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        # Nothing once it has ended; else 500 epochs would go on behind the tests.
        process.kill()
    assert process.returncode == 0, stderr
    assert "stopped by SIGTERM after step" in stdout
    stopped_at = int(stdout.split("stopped by SIGTERM after step ")[1].split(",")[0])
    assert int(_state(workdir)["step"]) == stopped_at
    assert not (workdir / "result.json").exists()
    assert not list(workdir.rglob("*tmp*"))


def _config(root: pathlib.Path, **changes: object):
    """What SMALL says, for runs in this process."""
    return small_config(root, {"train.max_steps": 6, "train.checkpoint_every": 3, "train.log_every": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "message", "saved"),
    [
        ({"train.checkpoint_every": 1}, "is (nan|inf) at step", True),
        # The first step's loss is finite, only what its weights give is not.
        ({"optim.warmup_epochs": 0.0, "train.max_steps": 1}, "val loss is nan at step 1", False),
    ],
)
def test_nan_names_the_step_and_the_checkpoint(changes, message, saved, few_lidc_root, tmp_path):
    config = _config(few_lidc_root, **{"optim.lr": 1e30, "optim.warmup_epochs": 1.0, **changes})
    with pytest.raises(UserError, match=message) as error:
        train.train_and_evaluate(config, tmp_path / "run")
    assert "start again in another --workdir with a lower optim.lr, or with optim.clip_norm; " in str(error.value)
    if not saved:
        assert "there is no checkpoint yet" in str(error.value)
        return
    named = int(str(error.value).split("last good checkpoint: step ")[1].split(" ")[0])
    state = _state(tmp_path / "run")
    assert int(state["step"]) == named
    assert all(np.isfinite(leaf).all() for path, leaf in _leaves(state) if path.startswith("/params"))


def test_another_block_is_refused(few_lidc_root, tmp_path):
    for seed in (0, 1):
        source = write_safetensors(tiny_llama(seed), tmp_path / f"llama{seed}")
        convert.convert(str(source), "3", tmp_path / f"block{seed}")
    workdir = tmp_path / "run"

    def config(seed: int):
        block = {"boost.family": "", "boost.block": str(tmp_path / f"block{seed}"), "boost.layers": (3,)}
        return _config(few_lidc_root, **block, **{"train.max_steps": 2})

    result = train.train_and_evaluate(config(0), workdir)
    assert result["block"]["layers"] == [3]
    assert result["block"]["source"] == "llama0"
    with pytest.raises(UserError, match="is a finished run with the block from llama0"):
        train.train_and_evaluate(config(1), workdir)
    unnamed = config(0)
    unnamed.boost.block = ""
    with pytest.raises(UserError, match=r'^config field boost\.block is empty: give the folder .*, or "random"$'):
        train.train_and_evaluate(unnamed, workdir)
    # Without its result, the run counts as unfinished.
    (workdir / "result.json").unlink()
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"was trained with other block \(.* there, .* now\): give the same as then"):
        train.train_and_evaluate(config(1), workdir)
    assert (workdir / "config.json").read_bytes() == before
    again = train.train_and_evaluate(config(0), workdir)
    assert {**again, **dict.fromkeys(VARYING)} == {**result, **dict.fromkeys(VARYING)}


def test_reference_protocol_is_marked(few_lidc_root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxboost"), "propagate", True)
    # As on a device with a known peak; the figures of the run are the same.
    monkeypatch.setattr(mfu, "peak_flops", lambda *_: 1e15)
    result = train.train_and_evaluate(_config(few_lidc_root, **{"eval.protocol": "reference"}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # The first record has no rate, as it includes the compilation, and validations have none.
    rates = [bool(line.get("images_per_second")) for line in lines]
    assert any(rates)
    assert rates == [0 < line.get("mfu", 0) < 1 for line in lines]
    assert "picked on the test split" in caplog.text
    assert result["protocol"] == "reference"
    assert result["selection"]["split"] == "test"
    assert "optimistic" in result["warning"]
    assert all("reference-" in file.name for file in (tmp_path / "run/predictions").iterdir())


def test_two_devices_give_the_same_losses(uninterrupted, few_lidc_root, tmp_path):
    whole, _ = uninterrupted
    workdir = tmp_path / "run"
    options = ("--config.train.deterministic=true",)
    process = run_script(*_small(few_lidc_root, workdir, *options), env=devices(2))
    assert process.returncode == 0, process.stderr
    # Nothing has started jax before XLA's flag is given, and the flags of the environment stay.
    assert "deterministic: XLA_FLAGS has --xla_gpu_deterministic_ops=true" in process.stdout
    assert "2 x cpu" in process.stdout
    for ours, theirs in zip(records(workdir), records(whole), strict=True):
        if "train_loss" in ours:
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


ONE_PLAIN_STEP = ("--config.train.max_steps=1", "--config.train.batch_size=16", "--config.boost.kind=none")


def test_compiled_programs_are_kept_for_the_next_start(few_lidc_root, tmp_path):
    cache = tmp_path / "cache"
    # Empty, the variable names no folder. Programs that compile within a second are not kept by default, and with the
    # tests' flags all do.
    env = {
        "XDG_CACHE_HOME": str(cache),
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    # What comes after a training step needs no second start. torch, if it is installed, would only take its time.
    ends_after_a_step = interrupted_training(2, "config.json", "os._exit('torch' in sys.modules)")

    def train(run: str) -> dict[str, int]:
        workdir = tmp_path / run
        arguments = _small(few_lidc_root, workdir, "--config.boost.kind=none")[1:]
        process = run_script("-c", ends_after_a_step, workdir, *arguments, env=env)
        assert process.returncode == 0, process.stderr
        return {path.name: path.stat().st_mtime_ns for path in cache.rglob("jit_train_step*-cache")}

    kept = train("first")
    assert len(kept) == 1
    assert train("second") == kept


@pytest.mark.parametrize("kept", [True, False])
def test_programs_are_kept_as_the_config_says(kept, few_lidc_root, tmp_path, monkeypatch):
    def keep(enabled: bool) -> None:
        raise UserError(f"kept: {enabled}")

    monkeypatch.setattr(assembly, "keep_compiled_programs", keep)
    with pytest.raises(UserError, match=f"kept: {kept}"):
        train.train_and_evaluate(_config(few_lidc_root, **{"train.compilation_cache": kept}), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.name": "vesselmnist"}, "did you mean 'vesselmnist3d'"),
        ({"model.backbone": "vivit"}, "did you mean 'vivit_"),
        ({"model.backbone": "vit_s"}, "is 3-D but backbone vit_s takes 2-D input: .*vivit_tiny"),
        ({"model.image_size": 27}, "27 is not a multiple of the patch size 7"),
        ({"model.image_size": 56}, "volumes are not resampled, set it to data.size"),
        ({"model.mean": ("x",)}, "model.mean: give 1 or 3 values"),
        ({"model.std": (0.0,)}, "model.std.*not be 0"),
        ({"model.mean": (1.0, 2.0)}, "model.mean: give 1 or 3 values"),
        ({"model.dtype": "float16"}, "model.dtype.*valid: auto, float32, bfloat16"),
        ({"boost.kind": "rlm"}, "did you mean 'rllm'"),
        ({"boost.path": "fast"}, "boost.path.*valid: auto, full, pooled, absorbed"),
        ({"boost.path": "absorbed", "boost.rope": True}, "boost.path: absorbed .* rope .* set it to auto"),
        ({"boost.path": "absorbed", "boost.kind": "mlp"}, "boost.path: absorbed .* kind mlp has no LLM layer"),
        ({"boost.layers": ("x",)}, "boost.layers.*layer numbers"),
        ({"boost.family": "llama-8b"}, "boost.family.*did you mean"),
        ({"boost.final_norm": "zeros"}, "boost.final_norm"),
        ({"boost.block": ""}, "boost.block is empty.*jaxboost convert"),
        ({"boost.block": "random", "boost.family": ""}, "boost.family and boost.block give no shapes"),
        ({"boost.layers": (-1,)}, "layer numbers from 0"),
        ({"boost.final_norm": "loaded"}, "a random block has no norm"),
        (
            {"boost.block": "nowhere/block", "boost.source": "huggyllama/llama-7b"},
            "jaxboost convert --source huggyllama/llama-7b --part block --layers 0 --out nowhere/block",
        ),
        ({"optim.name": "sgd"}, "optim.name"),
        ({"train.batch_size": 5000}, "5000"),
        ({"train.batch_size": 0}, "train.batch_size: 0 should be above 0"),
        ({"train.epochs": 0}, "train.epochs: 0 should be above 0"),
        ({"train.max_steps": -1}, "train.max_steps: -1 should be 0 or more"),
        ({"optim.warmup_epochs": -1.0}, "optim.warmup_epochs"),
        ({"optim.b1": 1.0}, "optim.b1: 1.0 should be below 1"),
        ({"eval.metric": "f1"}, "eval.metric.*valid: auc, acc"),
        ({"eval.protocol": "test"}, "eval.protocol.*valid: validation, reference"),
    ],
)
def test_mistakes_write_nothing(change, words, few_lidc_root, tmp_path):
    config = _config(few_lidc_root, **change)
    with pytest.raises(UserError, match=words):
        train.train_and_evaluate(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_end_in_one_line_and_exit_code_two(tmp_path):
    def config_file(name: str, text: str) -> pathlib.Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    misspelt = config_file(
        "misspelt.py",
        "from jaxboost.config import table\n\n\ndef get_config():\n"
        "    config = table.get_config()\n    config.optim.lrr = 1.0\n    return config\n",
    )
    unknown = config_file("unknown.py", "import nothing_of_that_name\n")
    invalid = config_file("invalid.py", "def get_config(:\n")
    quickstart = "--config=configs/quickstart.py"
    mistakes = [
        ([], ["--config is missing"]),
        (["--config=configs/nothing.py"], ["configs/nothing.py: no such file"]),
        ([quickstart, "--wrkdir=x"], ["wrkdir"]),
        ([quickstart, "more"], ["unexpected argument 'more'"]),
        ([quickstart, "--config.optim.lrr=1"], ["--config.optim.lrr", "did you mean 'lr'"]),
        ([quickstart, "--config.optim.lr=fast"], ["optim.lr: 'fast' should be a number"]),
        ([quickstart, "--config.model.backbone=vit_x"], ["model.backbone", "vit_s"]),
        ([f"--config={REPOSITORY}/configs/pneumollm.py:engin"], ["engin", "engine"]),
        ([f"--config={misspelt}"], [str(misspelt), 'Did you mean "lr"']),
        ([f"--config={unknown}"], [str(unknown), "No module"]),
        ([f"--config={invalid}"], [str(invalid), "invalid"]),
    ]
    processes = run_each([("train.py", f"--workdir={tmp_path / 'run'}", *arguments) for arguments, _ in mistakes])
    for (_, words), process in zip(mistakes, processes, strict=True):
        assert_mistake(process, *words)
    assert not (tmp_path / "run").exists()

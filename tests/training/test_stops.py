"""A signal in each phase of a run: it ends, and the next command gives what an uninterrupted run does, bit by bit."""

import logging
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from jaxboost import stopping
from jaxboost.data.dataset import Dataset, DatasetInfo, Split, row_digests
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.rows import place
from jaxboost.evaluation import evaluate
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.vit import ViT
from jaxboost.processes import group
from jaxboost.runs import datasets, lock, train
from jaxboost.statistics import intervals
from jaxboost.training import source_tokens, step
from jaxboost.training.checkpoints import checkpointer
from tests.conftest import forget_programs
from tests.finished_runs import colours
from tests.metrics import records
from tests.training.stopped_runs import outcome, send_in

# What is replaced here are functions of the host, and rows of BACKBONES: another structure is another program.
pytestmark = pytest.mark.same_programs

# Two epochs of three steps, and a checkpoint at the end of each alone.
CHANGES = {"train.epochs": 2, "train.max_steps": 0, "train.log_every": 1, "train.batch_size": 3, "eval.batch_size": 4}

TINY = Backbone(
    encoder=ViT, ndim=2, arguments={"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch": 14}, head_eps=1e-6
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The data, and what an uninterrupted run on it finds."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "data", outcome(colours(folder / "data", folder / "run", **CHANGES))


@pytest.fixture(autouse=True)
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxboost"), "propagate", True)
    caplog.set_level(logging.INFO, "jaxboost")


# Where the signal comes, what the run says, and its last saved step: 0 for none.
PHASES = {
    "while the data are read": ((datasets, "load"), {}, "before the first step", 0),
    "while validation is compiled": ((evaluate, "put"), {}, "before the first step", 0),
    "in the first step": ((step, "put"), {}, "before the first step", 0),
    "in the second step": ((step, "put"), {"call": 2}, "after step 2, saved", 2),
    "after the first step has asked": ((stopping, "received"), {"call": 2, "after": True}, "after step 2, saved", 2),
    # The batch that validation is compiled with comes before.
    "in the first validation": ((evaluate, "put"), {"call": 3}, "after step 3, saved", 3),
    "while the best weights are saved": ((checkpointer.Checkpointer, "save_best"), {}, "after step 3, saved", 3),
    "in the last validation": ((evaluate, "put"), {"call": 6}, "after step 6, saved", 6),
    "while the last state is saved": (
        (checkpointer.Checkpointer, "save_latest"),
        {"call": 2},
        "after step 6, saved",
        6,
    ),
    "in the last test": ((evaluate, "put"), {"call": 9}, "after the last step", 6),
    "while intervals are computed": ((intervals, "split_intervals"), {"call": 2}, "after the last step", 6),
    "before the result is written": ((train.workdir, "write_result"), {}, "after the last step", 6),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_in_each_phase_loses_nothing(phase, whole, tmp_path, monkeypatch, caplog):
    (owner, name), options, words, saved = PHASES[phase]
    data, expected = whole
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        send_in(patched, owner, name, **options)
        colours(data, folder, **CHANGES)
    assert f"stopped by SIGTERM {words}" in caplog.text
    assert not (folder / "result.json").exists()
    assert not (folder / lock.FILE).exists()
    assert not list(folder.rglob("*tmp*"))
    assert not list(folder.rglob("*.part"))
    steps = [int(path.name) for path in folder.glob("checkpoints/latest/[0-9]*")]
    assert max(steps, default=0) == saved
    if phase == "in the second step":
        forget_programs()  # as in another process
    colours(data, folder, **CHANGES)
    assert (f"resumed from step {saved}" in caplog.text) == bool(saved)
    assert outcome(folder) == expected


def test_a_stop_with_lora_loses_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    changes = CHANGES | {"model.backbone": "tiny", "model.frozen": True, "model.weights": "random"}
    changes |= {"model.lora_rank": 2, "optim.lr": 1e-2}
    expected = outcome(colours(whole[0], tmp_path / "whole", **changes))
    assert expected["result"]["encoder"]["trained"] == "lora"
    with monkeypatch.context() as patched:
        send_in(patched, step, "put", call=2)
        colours(whole[0], tmp_path / "run", **changes)
    assert [path.name for path in tmp_path.glob("run/checkpoints/latest/[0-9]*")] == ["2"]
    colours(whole[0], tmp_path / "run", **changes)
    assert outcome(tmp_path / "run") == expected


def test_a_validation_that_was_left_out_is_done_once(whole, tmp_path, monkeypatch, caplog):
    """Also where the run is killed after it, before there is another checkpoint, and stopped in it once more."""
    data, expected = whole
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        send_in(patched, evaluate, "put", call=3)
        colours(data, folder, **CHANGES)
    assert [record for record in records(folder) if "val_loss" in record] == []
    with monkeypatch.context() as patched:
        send_in(patched, evaluate, "put", call=2)
        colours(data, folder, **CHANGES)
    assert "stopped by SIGTERM before step 4: run the same command again" in caplog.text

    class KilledError(Exception):
        pass

    def kill(*_):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(step, "put", kill)
        with pytest.raises(KilledError):
            colours(data, folder, **CHANGES)
    assert [record["step"] for record in records(folder) if "val_loss" in record] == [3]
    colours(data, folder, **CHANGES)
    assert outcome(folder) == expected


def test_a_signal_to_another_process_after_the_last_step_stops_this_one(whole, tmp_path, monkeypatch, caplog):
    data, _ = whole
    both = group.Group(0, 1)
    monkeypatch.setattr(group, "_group", both)
    both.member = SimpleNamespace(
        gather=lambda name, value: [value, 15] if name == "stopped" else [value], send=lambda message: None
    )
    with stopping.watch(resumable=True):
        colours(data, tmp_path / "run", **CHANGES)
    assert "stopped by SIGTERM after step 6, saved" in caplog.text
    assert not (tmp_path / "run" / "result.json").exists()


def test_ctrl_c_where_nothing_is_saved_is_raised(whole, tmp_path, monkeypatch):
    """The scripts make 130 of it; after a step the run is saved as after SIGTERM."""
    data, _ = whole
    monkeypatch.setattr(datasets, "load", lambda config: signal.raise_signal(signal.SIGINT))
    with pytest.raises(stopping.Stopped, match="stopped by Ctrl-C before the first step"):
        colours(data, tmp_path / "run", **CHANGES)
    assert not (tmp_path / "run").exists()


def test_what_was_encoded_before_a_stop_is_kept(tmp_path, monkeypatch):
    """Encoding may take longer than a job that is ended for others' sake has."""
    rng = np.random.default_rng(0)
    info = DatasetInfo(
        name="x", task="binary-class", classes=("a", "b"), channels=1, ndim=2, size=4, n_samples={}, license=""
    )
    splits = {
        name: Split(images=rng.integers(0, 256, (6, 4, 4, 1), np.uint8), labels=np.zeros((6, 1), int))
        for name in ("train", "test")
    }
    encoded = []

    def encode(batch):
        encoded.extend(batch["image"])
        if len(encoded) == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return batch["image"].reshape(-1, 4, 4).astype(np.float32)

    def run():
        dataset = Dataset(info=info, splits=splits, baselines={})
        options = dict(batch_size=2, image_size=4, augment=Augment(), folder=tmp_path, key="k")
        return source_tokens.encode(dataset, encode, **options)

    # In the fourth batch: three are done.
    stop_after = 8
    with stopping.watch(), pytest.raises(stopping.Stopped):
        run()
    assert len(encoded) == 8
    encoded.clear()
    tokens = run()
    assert len(encoded) == 6
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".lock")]
    for name, split in splits.items():
        np.testing.assert_array_equal(tokens.splits[name].images, split.images[..., 0])
    # Earlier versions had one file, first of another name; it is taken over, and removed.
    (folder,) = tmp_path.glob("source-tokens-*")
    arrays = {
        "digests": np.array([digest for split in splits.values() for digest in row_digests(split.images)]),
        "tokens": np.concatenate([np.asarray(split.images) for split in tokens.splits.values()]),
    }
    for start in ("source-tokens", "features"):
        shutil.rmtree(folder)
        older = tmp_path / f"{folder.name.replace('source-tokens', start)}.npz"
        np.savez(older, **arrays)
        # On a full disk it stays: its tokens are nowhere else.
        with monkeypatch.context() as patched:
            patched.setattr(place, "lacks", lambda *_: "no room")
            run()
        assert older.exists()
        taken = run()
        assert len(encoded) == 6
        for name, split in tokens.splits.items():
            np.testing.assert_array_equal(taken.splits[name].images, split.images)
        assert list(tmp_path.iterdir()) == [folder]

"""Tokens of R-LLM's frozen encoder are computed once, and runs of a study share them."""

import threading
import time

import pytest

from jaxboost.runs import datasets, train, turns
from tests.training.small_runs import small_config

FROZEN = {"model.frozen": True, "model.weights": "random"}


@pytest.fixture
def assemble(few_lidc_root, tmp_path):
    def make(name, **changes):
        config = small_config(few_lidc_root, FROZEN | {key.replace("__", "."): to for key, to in changes.items()})
        return train.assemble(config, tmp_path / name)

    return make


def test_a_model_without_a_layer_keeps_only_the_first_token(assemble, tmp_path):
    """The tokens of one model must not be taken for those of the other: the layer would see one token."""
    with datasets.shared(tmp_path / "cache"):
        plain, rllm = assemble("plain", boost__kind="none"), assemble("rllm")
    # 28^3 voxels have 4^3 patches.
    shapes = [run.dataset.splits["train"].images.shape[1:] for run in (plain, rllm)]
    assert [count for count, _ in shapes] == [1, 65]
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npz", ".npz"]


def test_runs_that_share_a_folder_take_turns(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(turns, "_POLL", 0.01)
    events = []

    def second():
        with turns.take(tmp_path, "tokens"):
            events.append("second")

    with caplog.at_level("INFO", logger="jaxboost"), turns.take(tmp_path, "tokens"):
        thread = threading.Thread(target=second)
        thread.start()
        while not caplog.records:
            time.sleep(0.01)
        with turns.take(tmp_path, "embeddings"):
            events.append("others do not wait")
        events.append("first")
    thread.join()
    assert events == ["others do not wait", "first", "second"]
    assert caplog.messages == [f"another run computes tokens in {tmp_path}: waiting for it"]
    assert list(tmp_path.iterdir()) == []

"""`train.deterministic`: XLA's flag, and when it comes too late. What it does needs a GPU: that is not tested."""

import os

import jax
import pytest

from jaxboost.config import load_config
from jaxboost.config.validation import validate
from jaxboost.errors import UserError
from jaxboost.runs import cross_validation, deterministic
from jaxboost.systems.system import attention_mode
from tests import devices

FLAG = "--xla_gpu_deterministic_ops=true"


def test_other_settings_stay():
    mine = '--xla_gpu_autotune_level=4 --xla_dump_to="a folder"'
    both = f"{mine} {FLAG}"
    # Once is enough, and an opposite setting does not stay.
    for given in (mine, both, f"{mine} --xla_gpu_deterministic_ops=false"):
        assert deterministic.with_flag(given) == both
    assert deterministic.with_flag("") == FLAG
    assert deterministic.is_given(both)
    assert not deterministic.is_given(both.replace("=true", "=false"))
    assert not deterministic.is_given(mine)


def test_a_file_of_flags_is_refused():
    with pytest.raises(UserError, match=r"XLA_FLAGS=flags\.txt is not a list of flags"):
        deterministic.with_flag("flags.txt")


def test_too_late(tmp_path, monkeypatch):
    """The backend of this process has started: on a CPU that does not matter, on a GPU it is a mistake."""
    jax.devices()
    before = os.environ.get("XLA_FLAGS", "")
    devices.stand_in(monkeypatch, devices.CPU)
    deterministic.prepare()
    devices.stand_in(monkeypatch, devices.A100)
    config = load_config("quickstart", **{"train.deterministic": True})
    with pytest.raises(UserError, match=r"train\.deterministic: jax has started before, without its setting"):
        cross_validation.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert os.environ.get("XLA_FLAGS", "") == before
    monkeypatch.setenv("XLA_FLAGS", deterministic.with_flag(before))
    deterministic.prepare()


def test_in_time(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    monkeypatch.setattr(deterministic, "_has_started", lambda: False)
    deterministic.prepare()
    assert os.environ["XLA_FLAGS"] == f"--xla_gpu_autotune_level=4 {FLAG}"


@pytest.mark.parametrize(
    ("fields", "mode"),
    [({}, "auto"), ({"train.deterministic": True}, "plain"), ({"model.attention": "fused"}, "fused")],
)
def test_attention_is_not_fused(fields, mode):
    """The gradient of cuDNN's kernel adds in the order of its threads."""
    assert attention_mode(load_config("quickstart", **fields)) == mode


def test_a_fused_attention_is_refused():
    with pytest.raises(UserError, match=r"model\.attention: fused attention has no fixed order of sums"):
        validate(load_config("quickstart", **{"train.deterministic": True, "model.attention": "fused"}))

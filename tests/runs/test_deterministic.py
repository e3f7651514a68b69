"""`train.deterministic`: XLA's settings, and when they come too late. What they do needs a GPU: that is not tested."""

import os

import jax
import pytest

from jaxboost.config import load_config
from jaxboost.errors import UserError
from jaxboost.runs import cross_validation, deterministic
from tests import devices

EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops=true"


def test_flags_of_a_new_run_and_of_one_that_goes_on(tmp_path):
    folder = tmp_path / "a run"
    file = f'"{folder}/autotuning.textproto"'
    dump, load = f"--xla_gpu_dump_autotune_results_to={file}", f"--xla_gpu_load_autotune_results_from={file}"
    mine = "--xla_gpu_autotune_level=4"
    assert deterministic.with_flags(mine, folder) == f"{mine} {EXCLUDE} {dump}"
    folder.mkdir()
    (folder / "autotuning.textproto").touch()
    goes_on = f"{mine} {EXCLUDE} {dump} {load}"
    assert deterministic.with_flags(mine, folder) == goes_on
    # Once is enough, and an opposite setting does not stay.
    assert deterministic.with_flags(f"{mine} --xla_gpu_exclude_nondeterministic_ops=false", folder) == goes_on
    assert deterministic.is_given(goes_on, folder)
    assert not deterministic.is_given(goes_on, tmp_path / "another")
    assert not deterministic.is_given(goes_on.replace("=true", "=false"), folder)


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [("flags.txt", "run", "XLA_FLAGS=flags.txt is not a list of flags"), ("", 'a"b', "must not have a quotation mark")],
)
def test_flags_that_cannot_be_given(given, name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        deterministic.with_flags(given, tmp_path / name)


def test_too_late(tmp_path, monkeypatch):
    """The backend of this process has started: on a CPU that does not matter, on a GPU it is a mistake."""
    jax.devices()
    before = os.environ.get("XLA_FLAGS", "")
    deterministic.prepare(tmp_path)
    devices.stand_in(monkeypatch, devices.A100)
    config = load_config("quickstart", **{"train.deterministic": True})
    with pytest.raises(UserError, match=r"train\.deterministic: jax has started before, without the settings for"):
        cross_validation.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert os.environ.get("XLA_FLAGS", "") == before
    monkeypatch.setenv("XLA_FLAGS", deterministic.with_flags(before, tmp_path))
    deterministic.prepare(tmp_path)


def test_in_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    monkeypatch.setattr(deterministic, "_has_started", lambda: False)
    deterministic.prepare(tmp_path)
    assert os.environ["XLA_FLAGS"] == deterministic.with_flags("--xla_gpu_autotune_level=4", tmp_path)

"""Runs whose data are on the devices, against runs whose batches the host sends."""

import json

import jax
import numpy as np
import pytest

from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.runs import assembly
from jaxboost.training import program, step
from tests.finished_runs import colours
from tests.metrics import records
from tests.training.small_runs import scores_of, small_config, take_step
from tests.training.stopped_runs import outcome, send_in

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs

# Three epochs of three steps; every random change that the host has for images too.
CHANGES = {
    **{"train.epochs": 3, "train.max_steps": 0, "train.log_every": 1, "train.batch_size": 3, "eval.batch_size": 4},
    **{"data.on_device": "true", "augment.crop_scale": (0.5, 1.0), "augment.flip": 0.5, "augment.rand_augment_ops": 1},
    "augment.resize": 0,
}


def test_losses_and_scores_are_those_of_the_host(few_lidc_root, tmp_path):
    losses, scores = {}, {}
    for where in ("false", "true"):
        changes = {"data.on_device": where, "train.last_batch": "keep", "train.batch_size": 20}
        run = assembly.assemble(small_config(few_lidc_root, changes), tmp_path / where)
        losses[where] = []
        for _ in range(3):
            run.state, outputs = take_step(run, run.feed.take(1))
            losses[where].append(float(np.ravel(outputs["loss"])[0]))
        scores[where] = [scores_of(run, run.state.params, run.state.stats, split) for split in ("val", "test")]
        assert run.config.data.on_device == where
    # Two programs may round differently; volumes of 28 voxels are not resized.
    np.testing.assert_allclose(losses["true"], losses["false"], rtol=1e-6)
    for (loss, probabilities), (expected_loss, expected) in zip(scores["true"], scores["false"], strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_several_steps_in_a_call_change_nothing_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    data = tmp_path / "data"
    expected = outcome(colours(data, tmp_path / "one", **CHANGES))
    folder = tmp_path / "epoch"
    with monkeypatch.context() as patched:
        send_in(patched, step, "put", call=2)
        colours(data, folder, **CHANGES, **{"train.steps_per_call": 0})
    # A stop waits for the end of the call.
    assert [line["step"] for line in records(folder) if "train_loss" in line] == [1, 2, 3, 4, 5, 6]
    assert not (folder / "result.json").exists()
    program.forget()  # as in another process
    # "auto" agrees with the choice that the run has recorded; two steps in a call leave one over.
    changes = CHANGES | {"data.on_device": "auto", "train.steps_per_call": 2}
    found = outcome(colours(data, folder, **changes))
    assert found["records"] == expected["records"]
    assert found["predictions"] == expected["predictions"]
    assert json.loads((folder / "config.json").read_text())["data"]["on_device"] == "true"
    with pytest.raises(UserError, match=r"data.on_device \('true' there, 'false' now\)"):
        colours(data, folder, **CHANGES | {"data.on_device": "false"})


def test_several_steps_in_a_call_need_data_on_the_devices(few_lidc_root, tmp_path):
    with pytest.raises(UserError, match=r"train\.steps_per_call: 4 needs the data on the devices: set data\.on_device"):
        assembly.assemble(small_config(few_lidc_root, {"train.steps_per_call": 4}), tmp_path)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU")
def test_a_cpu_gets_batches_from_the_host(few_lidc_root, tmp_path):
    run = assembly.assemble(small_config(few_lidc_root, {"data.on_device": "auto"}), tmp_path)
    assert run.config.data.on_device == "false"
    assert run.program.reading is None


def test_auto_agrees_with_a_recorded_choice(few_lidc_root):
    config = small_config(few_lidc_root, {"data.on_device": "auto"})
    before = continuing.fixed_fields(continuing.to_dict(config)) | {"data.on_device": "true"}
    assert continuing.with_choices(config, lambda: before).data.on_device == "true"
    assert not continuing.differing(before, continuing.fixed_fields(continuing.to_dict(config)))
    assert continuing.with_choices(config, lambda: None).data.on_device == "auto"
    config.data.on_device = "false"
    assert continuing.with_choices(config, lambda: before).data.on_device == "false"

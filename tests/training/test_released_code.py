"""Switches that follow what the papers' released code does, in a run."""

import math

import numpy as np
import pytest

from jaxboost.errors import UserError
from jaxboost.evaluation import metrics
from jaxboost.runs import assembly, train
from tests.training.small_runs import small_config, take_steps


def test_a_run_keeps_the_last_batch(lidc_root, tmp_path):
    """1,402 nodules in batches of 128: eleven steps, the last with 122."""
    changes = {"train.last_batch": "keep", "train.batch_size": 128, "eval.batch_size": 128, "boost.kind": "none"}
    run = assembly.assemble(small_config(lidc_root, changes), tmp_path / "run")
    assert run.steps_per_epoch == 11
    masks = [next(run.feed.iterator)["mask"].sum() for _ in range(11)]
    assert masks == [128] * 10 + [122]
    assert np.isfinite(take_steps(run, 1)).all()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model.backbone": "resnet18_3d", "boost.kind": "none"}, "batch norms need whole batches"),
        ({"mix.mixup": 0.8}, "mixup and cutmix need whole batches"),
    ],
)
def test_partial_batches_that_would_be_other_ones(few_lidc_root, tmp_path, changes, what):
    with pytest.raises(UserError, match=rf'config field train\.last_batch: {what}: set it to "drop"'):
        train.train_and_evaluate(small_config(few_lidc_root, {"train.last_batch": "keep", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "earlier", "later"),
    [(0.8, True, True), (0.7, False, True), (0.6, False, False), (math.nan, False, False)],
)
def test_epochs_with_the_same_metric(value, earlier, later):
    assert metrics.is_better(value, 0.7, ties="earlier") is earlier
    assert metrics.is_better(value, 0.7, ties="later") is later


def test_unknown_switches(few_lidc_root, tmp_path):
    for field, message in (("boost.init", "'random' is unknown"), ("eval.ties", "'random' is unknown")):
        with pytest.raises(UserError, match=f"config field {field}: {message}"):
            train.train_and_evaluate(small_config(few_lidc_root, {field: "random"}), tmp_path / "run")

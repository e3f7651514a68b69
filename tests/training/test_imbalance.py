"""Class weights and thresholds against scikit-learn, torch and plain counting."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from jaxboost.data.dataset import MULTI_LABEL, DatasetInfo
from jaxboost.errors import UserError
from jaxboost.evaluation import thresholds
from jaxboost.training import step


def _info(task, classes):
    names = tuple("abcdef"[:classes])
    return DatasetInfo(name="set", task=task, classes=names, channels=1, ndim=2, size=28, n_samples={}, license="")


def test_balanced_is_scikit_learns():
    labels = np.array([0, 0, 0, 1, 1, 2])[:, None]
    ours = thresholds.class_weights("balanced", labels, _info("multi-class", 3))
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels[:, 0])
    np.testing.assert_allclose(ours, theirs)


def test_balanced_labels_have_their_odds():
    labels = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    assert thresholds.class_weights("balanced", labels, _info(MULTI_LABEL, 2)) == (1.0, 3.0)


def test_none_and_numbers():
    labels = np.zeros((3, 1), int)
    assert thresholds.class_weights("", labels, _info("binary-class", 2)) == ()
    assert thresholds.class_weights("1,2.5", labels, _info("binary-class", 2)) == (1.0, 2.5)


@pytest.mark.parametrize("spec", ["1", "1,x", "1,-2", "1,nan", "1,2,3", "0,0", "balance"])
def test_what_is_no_weight(spec):
    with pytest.raises(UserError, match="2 numbers from 0"):
        thresholds.class_weights(spec, np.zeros((3, 1), int), _info("binary-class", 2))


def test_a_class_without_examples():
    with pytest.raises(UserError, match="no training example is 'b'"):
        thresholds.class_weights("balanced", np.zeros((3, 1), int), _info("binary-class", 2))


@pytest.mark.parametrize("task", ["multi-class", MULTI_LABEL])
def test_weighted_loss_is_torchs(task):
    rng = np.random.default_rng(0)
    logits, weights = rng.standard_normal((7, 3)).astype(np.float32), (0.5, 2.0, 3.0)
    objective = step.Objective(task=task, classes=3, class_weights=weights)
    theirs = torch.from_numpy(logits)
    if task == MULTI_LABEL:
        targets = rng.integers(0, 2, (7, 3)).astype(np.float32)
        expected = functional.binary_cross_entropy_with_logits(
            theirs, torch.from_numpy(targets), pos_weight=torch.tensor(weights), reduction="none"
        ).mean(-1)
    else:
        # Soft, as mixup makes them.
        targets = rng.dirichlet(np.ones(3), 7).astype(np.float32)
        expected = functional.cross_entropy(
            theirs, torch.from_numpy(targets), weight=torch.tensor(weights), reduction="none"
        )
    np.testing.assert_allclose(step.losses(logits, jnp.asarray(targets), objective, weighted=True), expected, rtol=1e-5)
    unweighted = step.losses(logits, jnp.asarray(targets), step.Objective(task=task, classes=3))
    np.testing.assert_array_equal(step.losses(logits, jnp.asarray(targets), objective), unweighted)


def test_columns_weigh_examples_by_their_class():
    logits, targets = np.array([[1.0, -1.0], [0.5, 2.0]], np.float32), jnp.eye(2)
    plain = step.losses(logits, targets, step.Objective(task="binary-class", classes=2, loss="columns"))
    objective = step.Objective(task="binary-class", classes=2, loss="columns", class_weights=(1.0, 3.0))
    np.testing.assert_allclose(step.losses(logits, targets, objective, weighted=True), plain * np.array([1, 3]))


def test_threshold_is_the_most_sensitive_that_is_specific_enough():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = np.round(np.clip(0.3 * labels + 0.5 * rng.random(60), 0, 1), 2)  # with ties
    for wanted in (0.5, 0.8, 0.9, 0.95):
        value = thresholds.choose_threshold(labels, scores, wanted)
        figures = thresholds.score_at(labels, scores, value)
        assert figures["specificity"] >= wanted
        candidates = [thresholds.score_at(labels, scores, other) for other in np.unique(scores)]
        allowed = [found["sensitivity"] for found in candidates if found["specificity"] >= wanted]
        assert figures["sensitivity"] == max(allowed)


def test_threshold_counts_exactly():
    """Nine of ten are right at .9: floating point must not make it ten of ten."""
    labels = np.array([0] * 10 + [1])
    scores = np.array([*np.linspace(0, 0.45, 9), 0.9, 0.8])
    assert thresholds.choose_threshold(labels, scores, 0.9) == pytest.approx(0.8)


def test_no_threshold_is_specific_enough():
    value = thresholds.choose_threshold(np.array([1, 0]), np.array([0.2, 0.9]), 0.99)
    assert value == np.inf
    assert thresholds.score_at(np.array([1, 0]), np.array([0.2, 0.9]), value) == {
        "sensitivity": 0.0,
        "specificity": 1.0,
        "acc": 0.5,
    }
    assert thresholds.score_at(np.array([1]), np.array([0.2]), value)["specificity"] is None

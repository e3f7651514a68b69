"""Class weights against scikit-learn and torch."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.models.rngs import make_rngs
from jaxboost.tasks import MULTI_LABEL, TASKS
from jaxboost.training import imbalance, step


def _info(task, classes):
    names = tuple("abcdef"[:classes])
    return DatasetInfo(name="set", task=task, classes=names, channels=1, ndim=2, size=28, n_samples={}, license="")


def test_balanced_is_scikit_learns():
    labels = np.array([0, 0, 0, 1, 1, 2])[:, None]
    ours = imbalance.class_weights("balanced", labels, _info("multi-class", 3))
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels[:, 0])
    np.testing.assert_allclose(ours, theirs)


def test_balanced_labels_have_their_odds():
    labels = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    assert imbalance.class_weights("balanced", labels, _info(MULTI_LABEL, 2)) == (1.0, 3.0)


def test_none_and_numbers():
    labels = np.zeros((3, 1), int)
    assert imbalance.class_weights("", labels, _info("binary-class", 2)) == ()
    assert imbalance.class_weights("1,2.5", labels, _info("binary-class", 2)) == (1.0, 2.5)


@pytest.mark.parametrize("spec", ["1", "1,x", "1,-2", "1,nan", "1,2,3", "0,0", "balance"])
def test_what_is_no_weight(spec):
    with pytest.raises(UserError, match="2 numbers from 0"):
        imbalance.class_weights(spec, np.zeros((3, 1), int), _info("binary-class", 2))


def test_a_class_without_examples():
    with pytest.raises(UserError, match="no training example is 'b'"):
        imbalance.class_weights("balanced", np.zeros((3, 1), int), _info("binary-class", 2))


@pytest.mark.parametrize("task", ["multi-class", MULTI_LABEL])
def test_weighted_loss_is_torchs(task):
    rng = np.random.default_rng(0)
    logits, weights = rng.standard_normal((7, 3)).astype(np.float32), (0.5, 2.0, 3.0)
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
    ours = TASKS[task].losses(jnp.asarray(logits), jnp.asarray(targets), class_weights=weights)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_columns_weigh_examples_by_their_class():
    logits, targets = np.array([[1.0, -1.0], [0.5, 2.0]], np.float32), jnp.eye(2)
    losses = functools.partial(TASKS["binary-class"].losses, jnp.asarray(logits), targets, loss="columns")
    np.testing.assert_allclose(losses(class_weights=(1.0, 3.0)), losses() * np.array([1, 3]))


class _Linear(nnx.Module):
    """A model as the steps take it."""

    def __init__(self):
        self.head = nnx.Linear(4, 3, rngs=make_rngs(0))

    def __call__(self, images, precomputed=None, *, key=None):
        return self.head(images.reshape(len(images), -1).astype(jnp.float32))

    def precompute(self):
        return None


def test_evaluation_does_not_weight_the_classes():
    graphdef, *weights = frozen.split(_Linear())
    batch = {"image": jnp.arange(24, dtype=jnp.uint8).reshape(6, 2, 2, 1), "label": jnp.arange(6)[:, None] % 3}
    replicated, _ = step.make_mesh()
    plain, weighted = (
        step.make_eval_step(graphdef, step.Objective(task="multi-class", classes=3, class_weights=given), replicated)
        for given in ((), (1.0, 2.0, 5.0))
    )
    for ours, expected in zip(weighted(*weights)(batch), plain(*weights)(batch), strict=True):
        np.testing.assert_array_equal(ours, expected)

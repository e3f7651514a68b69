"""Mixup, cutmix, random erasing and smoothed labels against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from jaxboost.tasks import MULTI_LABEL, TASKS
from jaxboost.training import mixing
from jaxboost.training.mixing import Mixing

KEYS = jax.random.split(jax.random.key(0), 400)
mix = jax.jit(mixing.mix, static_argnums=2)
erase = jax.jit(mixing.erase, static_argnames=("probability", "mean", "std"))


def _batch(shape=(4, 16, 16, 1), classes=4):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    return images, np.eye(classes, dtype=np.float32)[: shape[0]]


def _shares(images, targets, settings):
    """How much of the first target is left, for each key."""
    draws = jax.jit(jax.vmap(lambda key: mixing.mix(images, targets, settings, key=key)[1][0, 0]))
    return np.asarray(draws(KEYS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_have_torchs_smoothed_loss(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 5)).astype(np.float32), rng.integers(0, 5, (6, 1))
    targets = TASKS["multi-class"].targets(jnp.asarray(labels), 5, smoothing)
    ours = jax.jit(lambda logits, targets: -(targets * jax.nn.log_softmax(logits)).sum(-1))(logits, targets)
    theirs = functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels[:, 0]), label_smoothing=smoothing, reduction="none"
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_several_labels_are_smoothed_each_for_itself():
    targets = TASKS[MULTI_LABEL].targets(jnp.array([[1, 0, 1]]), 3, 0.2)
    np.testing.assert_allclose(targets, [[0.9, 0.1, 0.9]], rtol=1e-6)


def test_nothing_is_done_by_default():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    same, targets = mixing.augment_batch(images, jnp.eye(4), Mixing(), mean=(0.5,), std=(0.2,), key=KEYS[0])
    assert same is images
    np.testing.assert_array_equal(targets, np.eye(4))


def test_mixup_joins_each_with_its_mirror():
    images, targets = _batch()
    mixed, mixed_targets = mix(images, targets, Mixing(mixup=0.8), key=KEYS[0])
    share = float(mixed_targets[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[::-1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(mixed_targets, share * targets + (1 - share) * targets[::-1], atol=1e-6)


def test_shares_of_mixup_are_beta_distributed():
    images, targets = _batch((2, 2, 2, 1), 2)
    shares = _shares(images, targets, Mixing(mixup=0.8))
    assert stats.kstest(np.asarray(shares), stats.beta(0.8, 0.8).cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [(4, 16, 16, 1), (4, 8, 8, 8, 1)])
def test_cutmix_puts_a_box_of_the_mirror(shape):
    _, targets = _batch()
    images = np.broadcast_to(np.arange(4, dtype=np.float32).reshape(4, *[1] * (len(shape) - 1)), shape)
    boxes = 0
    for key in KEYS[:40]:
        mixed, mixed_targets = mix(images, targets, Mixing(cutmix=1.0), key=key)
        mixed = np.asarray(mixed)
        inside = mixed[0, ..., 0] == 3
        np.testing.assert_array_equal(mixed, np.where(inside[..., None], images[::-1], images))
        assert float(mixed_targets[0, 0]) == pytest.approx(1 - inside.mean(), abs=1e-6)
        if inside.any():
            boxes += 1
            corners = np.argwhere(inside)
            assert inside.sum() == np.prod(np.ptp(corners, axis=0) + 1)
    assert boxes > 20


def test_area_of_cutmix_before_it_is_cut_off():
    """A box of side S sqrt(1 - l) around a centre in the middle, by the definition; here from many draws."""
    images, targets = _batch((2, 32, 32, 1), 2)
    shares = _shares(images, targets, Mixing(cutmix=1.0))
    # Uniform l and a uniform centre: a side a = sqrt(1 - l) loses a / 4 of itself on average, and E[a^2 (1 - a/4)^2],
    # with a^2 uniform, is 1/2 - 1/5 + 1/48.
    assert float(1 - shares.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)


def test_switch_and_probability():
    images = np.broadcast_to(np.arange(2, dtype=np.float32)[:, None, None, None], (2, 16, 16, 1))

    def kind(key, settings):
        mixed, targets = mixing.mix(images, jnp.eye(2), settings, key=key)
        return jnp.where((mixed == images).all(), 0, jnp.where(((mixed == 0) | (mixed == 1)).all(), 2, 1)), targets

    both = Mixing(mixup=1.0, cutmix=1.0, switch=0.25, prob=0.5)
    kinds = np.asarray(jax.jit(jax.vmap(lambda key: kind(key, both)[0]))(KEYS))
    # An empty cutmix box counts as nothing done.
    assert 0.45 < (kinds == 0).mean() < 0.6
    assert stats.binomtest(int((kinds == 1).sum()), len(KEYS), 0.5 * 0.75).pvalue > 0.01
    never = dataclasses.replace(both, prob=0.0)
    assert not never.mixes
    assert not np.asarray(jax.jit(jax.vmap(lambda key: kind(key, never)[0]))(KEYS[:50])).any()


def test_erased_rectangles():
    images = np.full((400, 32, 32, 3), -1000, np.float32)
    erased = np.asarray(erase(images, 0.25, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), key=KEYS[0]))
    changed = (erased != -1000).all(-1)
    hit = np.flatnonzero(changed.any((1, 2)))
    assert stats.binomtest(len(hit), 400, 0.25).pvalue > 0.01
    for mask in changed[hit]:
        corners = np.argwhere(mask)
        tall, wide = np.ptp(corners, axis=0) + 1
        assert mask.sum() == tall * wide
        # Sides are rounded to pixels.
        assert 0.015 * 32**2 < tall * wide < 0.37 * 32**2
        assert 0.2 < tall / wide < 5
    noise = erased[changed] / 255
    np.testing.assert_allclose(noise.mean(0), (0.4, 0.5, 0.6), atol=0.01)
    np.testing.assert_allclose(noise.std(0), (0.2, 0.3, 0.1), atol=0.01)


def test_everywhere_may_be_erased():
    images = np.zeros((2000, 8, 8, 1), np.float32)
    erased = np.asarray(erase(images, 1.0, mean=(0.5,), std=(0.1,), key=KEYS[1])) != 0
    assert erased.any((0, 3)).all()
    # Nothing prefers one side.
    rate = erased[..., 0].mean(0)
    np.testing.assert_allclose(rate, rate[::-1, ::-1], atol=0.04)

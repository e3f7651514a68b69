"""The share of a device's peak: a hand count, and the peaks of the datasheets. The devices are stand-ins."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from jaxboost.device import Device
from jaxboost.models.frozen import split
from jaxboost.models.rngs import make_rngs
from jaxboost.training import mfu, step
from tests import devices

B, D, H, C = 6, 12, 20, 3


class Small(nnx.Module):
    """Two linear layers."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(D, H, rngs=rngs), nnx.Linear(H, C, rngs=rngs)

    def __call__(self, images, key=None):
        del key
        return self.second(jax.nn.relu(self.first(images.reshape(len(images), D).astype(jnp.float32))))


@pytest.mark.parametrize("count", [1, 4])
def test_against_a_count_by_hand(count, monkeypatch):
    devices.stand_in(monkeypatch, devices.A100)
    graphdef, params, *_ = split(nnx.eval_shape(lambda: Small(make_rngs(0))))
    tx, (replicated, _) = optax.sgd(0.1), step.make_mesh()
    train_step = step.make_train_step(graphdef, tx, step.Objective(task="multi-class", classes=C), replicated)
    state = step.TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32), params=params, opt_state=tx.init(params), stats={}, ema={}
    )
    batch = {
        "image": jax.ShapeDtypeStruct((B, 2, 2, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((B, 1), jnp.int32),
    }
    used = mfu.Utilisation("bfloat16", count)
    assert used.record(1000.0) == {}
    used.count(train_step, state, {}, batch, jax.eval_shape(lambda: jax.random.key(0)), images=B)
    # Two operations a weight and image forwards, two for the weight's gradient, two for that of the layer's input; no
    # gradient is needed of the images.
    each = 4 * D * H + 6 * H * C
    assert used.record(1000.0) == {"mfu": pytest.approx(1000 * each / (count * 312e12), rel=1e-12)}
    assert used.record(None) == {}


def test_nothing_is_counted_where_the_peak_is_not_known(monkeypatch):
    def fail(*_):
        raise AssertionError("counted")

    monkeypatch.setattr(mfu, "count_flops", fail)
    for given in (devices.CPU, devices.MI250, Device(platform="gpu", kind="NVIDIA A10G", capability=(8, 6))):
        devices.stand_in(monkeypatch, given)
        used = mfu.Utilisation("bfloat16", 1)
        used.count(None, images=1)
        assert used.record(1.0) == {}


@pytest.mark.parametrize(
    ("kind", "dtype", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", "bfloat16", None, 312),
        ("NVIDIA A100 80GB PCIe", "float32", None, 156),
        ("NVIDIA A100-SXM4-40GB", "float32", "highest", 19.5),
        ("NVIDIA A100-SXM4-40GB", "float32", "bfloat16_3x", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None, None),
        ("NVIDIA H100 80GB HBM3", "bfloat16", None, 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", None, 756),
        ("NVIDIA H200", "bfloat16", None, 989),
        ("NVIDIA L4", "bfloat16", None, 121),
        ("NVIDIA L40", "bfloat16", None, None),
        ("Tesla T4", "bfloat16", None, None),
        ("Tesla T4", "float32", None, 8.1),
        ("Tesla V100-SXM2-16GB", "float32", None, 15.7),
        ("NVIDIA A10", "float32", "tensorfloat32", 62.5),
        ("NVIDIA GeForce RTX 3090", "bfloat16", None, 71),
        ("NVIDIA GeForce RTX 4090", "float32", "float32", 82.6),
        ("TPU v4", "bfloat16", None, 275),
        ("TPU v5 lite", "float32", None, 197),
        ("TPU v5", "bfloat16", None, 459),
        ("TPU v6 lite", "bfloat16", None, 918),
        ("TPU v5 lite", "float32", "highest", None),
        ("cpu", "float32", None, None),
    ],
)
def test_peaks(kind, dtype, precision, tera):
    found = mfu.peak_flops(Device(platform="any", kind=kind), dtype, precision)
    assert found == (None if tera is None else tera * 1e12)

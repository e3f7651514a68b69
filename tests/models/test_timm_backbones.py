"""Counts of all backbones that timm has weights for, and what the encoders without CLS token share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx

from jaxboost.convert.tables.families import FAMILIES
from jaxboost.models import attention
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.convnext import ConvNeXt
from jaxboost.models.efficientnet import EfficientNetLite
from jaxboost.models.frozen import count, merge, split, statistics
from jaxboost.models.rngs import make_rngs
from jaxboost.models.swin import Swin
from tests.models.parity import assert_close, normal, relative_change

ROWS = {timms: ours for family in FAMILIES.values() for timms, ours in family.architectures.items()}
SMALL: dict[str, Any] = {
    "convnext": (ConvNeXt, dict(depths=(1, 1), widths=(8, 12), layer_scale=False, response_norm=True)),
    "swin": (Swin, dict(patch=2, width=8, depths=(1, 1), heads=(1, 2), window=2)),
}
SIDE = 16


def small(name: str, **changes: Any) -> Any:
    build, arguments = SMALL[name]
    return build(image_size=SIDE, channels=3, rngs=make_rngs(0), **dict(dtype=jnp.float32) | arguments | changes)


# The other sizes of a family differ from these in numbers alone.
@pytest.mark.parametrize(
    "name", [name for name in ROWS if not any(size in name for size in ("femto", "pico", "small"))]
)
def test_counts_are_timms(name: str) -> None:
    """Without the linear head, which has its own number of classes."""
    row = BACKBONES[ROWS[name]]
    encoder = nnx.eval_shape(lambda: row.build(image_size=224, dtype=jnp.float32, rngs=make_rngs(0)))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    _, params, _, stats = split(encoder)
    norm = 0 if row.head_eps is None else 2 * encoder.width
    assert count(params) + norm == sum(weight.numel() for weight in model.parameters())
    assert count(stats) == sum(value.numel() for key, value in model.named_buffers() if "running" in key)
    assert encoder.width == model.num_features
    assert encoder.tokens == (49 if row.traits.gives_tokens else 1)
    eps = {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert eps == ({row.recorded_arguments["eps"]} if eps else set())
    assert row.head_eps in {None, *eps}


@pytest.mark.parametrize("name", SMALL)
def test_remat_and_bfloat16(name: str) -> None:
    x = jnp.asarray(normal((2, SIDE, SIDE, 3), 1))

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef: Any, params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.square(merge(graphdef, params, {})(x)).sum()

        return jax.value_and_grad(loss)(params)

    results = {}
    for case, changes in {"plain": {}, "remat": {"remat": True}}.items():
        graphdef, params, _, _ = split(small(name, **changes))
        results[case] = run(graphdef, params)
    for ours, plain in zip(jax.tree.leaves(results["remat"]), jax.tree.leaves(results["plain"]), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(np.abs(plain).max()))
    graphdef, params, _, _ = split(small(name, remat=True))
    assert "remat" in str(jax.make_jaxpr(lambda params: run(graphdef, params))(params))
    found = jax.jit(lambda model: model(x))(small(name, dtype=jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert 1e-6 < abs(float(jnp.square(found.astype(jnp.float32)).sum()) / float(results["plain"][0]) - 1) < 0.05


def test_remat_of_batch_norms() -> None:
    """The new statistics leave the part that is computed again."""
    x = jnp.asarray(normal((2, 64, 64, 3), 1))
    results = []
    for remat in (False, True):
        given: dict[str, Any] = dict(image_size=64, channels=3, depths=(1, 2, 1, 1, 1, 1, 1), widths=(8,) * 7)
        model = EfficientNetLite(**given, remat=remat, drop_path=0.5, dtype=jnp.float32, rngs=make_rngs(0))
        graphdef, params, _, stats = split(model)

        @functools.partial(jax.jit, static_argnums=0)
        def run(graphdef: Any, params: Any, stats: Any) -> Any:
            model = merge(graphdef, params, {}, stats)
            return model(x, key=jax.random.key(1)), statistics(model)

        results.append(run(graphdef, params, stats))
    for ours, plain in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-4)
    norm = results[0][1]["stem"]["norm"]
    assert relative_change(norm["variance"], stats["stem"]["norm"]["variance"]) > 0.05
    assert np.abs(norm["mean"]).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_stochastic_depth_is_for_training(name: str) -> None:
    x = jnp.asarray(normal((8, SIDE, SIDE, 3), 1))
    plain, drops = split(small(name)), split(small(name, drop_path=0.9))

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef: Any, params: Any) -> Any:
        model = merge(graphdef, params, {})
        return model(x), model(x, key=jax.random.key(0))

    (expected, also), (evaluated, trained) = run(*plain[:2]), run(*drops[:2])
    assert_close(evaluated, expected)
    assert_close(also, expected)
    assert relative_change(trained, expected) > 1e-3


@pytest.mark.parametrize(("size", "nearest"), [(28, 224), (225, 224), (400, 448), (0, 224)])
def test_windows_of_swin_are_whole(size: int, nearest: int) -> None:
    row = BACKBONES["swin_tiny"]
    problem = row.traits.size_problem(size, row.arguments)
    assert problem == f"images of {size} pixels are not a multiple of 224, which gives whole windows: give {nearest}"
    with pytest.raises(ValueError, match="not a multiple of 224"):
        row.build(image_size=size, dtype=jnp.float32, rngs=make_rngs(0))


def test_fused_attention_has_no_biases() -> None:
    encoder = attention.choose(small("swin"), "fused")
    with pytest.raises(ValueError, match=r"no fused attention for windows with position biases \(Swin\)"):
        encoder(jnp.zeros((1, SIDE, SIDE, 3)))

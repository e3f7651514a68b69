"""Attention's two layouts: CPU's own, and `jax.nn.dot_product_attention` elsewhere."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxboost.models.transformer import attend
from tests.models.parity import assert_close, cotangent, normal

B, Q, N, H, K = 2, 3, 5, 2, 8


def inputs() -> list[jax.Array]:
    return [2 * jnp.asarray(normal((B, tokens, H, K), seed)) for seed, tokens in enumerate((Q, N, N))]


def test_both_layouts_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, pull_ours = jax.vjp(attend, *inputs())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    theirs, pull_theirs = jax.vjp(attend, *inputs())
    assert_close(ours, theirs)
    weights = jnp.asarray(cotangent(ours.shape))
    for mine, other in zip(pull_ours(weights), pull_theirs(weights), strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "implementation"),
    [
        ("cuda 12080", jnp.bfloat16, 64, "cudnn"),
        ("cuda 12080", jnp.float16, 64, "cudnn"),
        ("cuda 12080", jnp.float32, 64, None),
        ("cuda 12080", jnp.bfloat16, 12, None),
        ("rocm 60300", jnp.bfloat16, 64, None),
    ],
)
def test_the_fused_kernel_is_taken_where_it_applies(
    platform: str, dtype: Any, width: int, implementation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: this holds the choice, not the kernel."""
    chosen = []

    def record(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str | None) -> jax.Array:
        chosen.append(implementation)
        return q

    device = types.SimpleNamespace(client=types.SimpleNamespace(platform_version=platform))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    x = jnp.zeros((1, 2, 1, width), dtype)
    attend(x, x, x)
    assert chosen == [implementation]

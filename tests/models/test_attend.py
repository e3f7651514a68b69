"""Attention's two layouts: CPU's own, and `jax.nn.dot_product_attention` elsewhere."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxboost.models import transformer
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
    ("platform", "dtype", "width", "queries", "accepts", "implementation"),
    [
        ("cuda 12080", jnp.bfloat16, 64, 2, True, "cudnn"),
        ("cuda 12080", jnp.float16, 64, 2, True, "cudnn"),
        ("cuda 12080", jnp.float32, 64, 2, True, None),
        ("cuda 12080", jnp.bfloat16, 12, 2, True, None),
        ("rocm 60300", jnp.bfloat16, 64, 2, True, None),
        # The CLS token alone, and lengths that the version of jax refuses.
        ("cuda 12080", jnp.bfloat16, 64, 1, True, None),
        ("cuda 12080", jnp.bfloat16, 64, 2, False, None),
    ],
)
def test_the_fused_kernel_is_taken_where_it_applies(
    platform: str,
    dtype: Any,
    width: int,
    queries: int,
    accepts: bool,
    implementation: str | None,
    monkeypatch: pytest.MonkeyPatch,
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
    monkeypatch.setattr(transformer, "_cudnn_accepts", lambda q, k, v: accepts)
    x = jnp.zeros((1, 2, 1, width), dtype)
    attend(x[:, :queries], x, x)
    assert chosen == [implementation]


def test_a_kernel_that_jax_refuses_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # No kernel of cuDNN takes float32, and a CPU has none at all.
    x = jnp.zeros((1, 2, 1, 64), jnp.float32)
    assert not transformer._cudnn_accepts(x, x, x)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, *, implementation: q)
    assert transformer._cudnn_accepts(x, x, x)

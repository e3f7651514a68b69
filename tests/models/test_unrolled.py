"""The encoder's layers on an accelerator: unrolled instead of a loop, with the same result."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxboost.models import attention
from jaxboost.models.rngs import make_rngs
from jaxboost.models.vit import ViT
from tests.models.parity import abstract, assert_close, cotangent, normal, randomise

ARGUMENTS = dict(image_size=8, patch=4, channels=3, width=8, depth=4, heads=2, mlp_width=16, dtype=jnp.float32)


def program(
    backend: str, monkeypatch: pytest.MonkeyPatch, *, drop: float = 0.0, remat: bool = False, portable: bool = False
) -> Any:
    """The lowered loss and gradients of a ViT, traced as for a backend, and its arguments."""
    apply, params, frozen = abstract(lambda: ViT(**ARGUMENTS, drop_path=drop, remat=remat, rngs=make_rngs(0)))
    arguments = (randomise(params, seed=0), jnp.asarray(normal((6, 8, 8, 3), 1)))

    def loss(params: Any, images: jax.Array) -> jax.Array:
        tokens = apply(params, frozen, images, key=jax.random.key(0) if drop else None)
        return (tokens * cotangent(tokens.shape)).sum()

    if portable:
        with attention.portable():
            return jax.jit(loss).lower(*arguments), arguments
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: backend)
        return jax.jit(jax.value_and_grad(loss)).lower(*arguments), arguments


def test_unrolled_layers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (loop, arguments), (unrolled, _) = (program(backend, monkeypatch, drop=0.5) for backend in ("cpu", "gpu"))
    first, second = (lowered.compile()(*arguments) for lowered in (loop, unrolled))
    jax.tree.map(assert_close, first, second)


def test_where_the_layers_are_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; where memory is short, as unrolled layers keep what `remat` would compute again; and in an export."""

    def has_loop(*args: Any, **options: Any) -> bool:
        return "stablehlo.while" in program(*args, monkeypatch, **options)[0].as_text()

    assert has_loop("cpu")
    assert has_loop("gpu", remat=True)
    assert has_loop("gpu", portable=True)
    assert not has_loop("gpu")
    assert not has_loop("tpu")

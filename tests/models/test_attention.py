"""Where attention is fused, and that all implementations give the same: no GPU is needed for either."""

import functools
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.device import Device
from jaxboost.errors import UserError
from jaxboost.models import attention
from jaxboost.models.attention import Form, fused_problem
from jaxboost.models.llama import LlamaConfig, LlamaLayer
from jaxboost.models.rngs import make_rngs
from jaxboost.models.transformer import attend
from tests import devices
from tests.models.parity import abstract, assert_close, cotangent, normal, randomise

B, Q, N, H, K = 2, 3, 5, 2, 8
HALF = dict(dtype="bfloat16", head_dim=64, queries=197, keys=197)


def inputs(queries: int = Q, keys: int = N) -> list[jax.Array]:
    return [2 * jnp.asarray(normal((B, tokens, H, K), seed)) for seed, tokens in enumerate((queries, keys, keys))]


def assert_same_with_gradients(ours: Any, theirs: Any, arguments: list[Any]) -> None:
    shape = jax.eval_shape(ours, *arguments).shape

    def with_gradients(function: Any) -> list[jax.Array]:
        def traced(*given: Any) -> Any:
            mixed, pull = jax.vjp(function, *given)
            return mixed, pull(jnp.asarray(cotangent(shape)))

        return jax.tree.leaves(jax.jit(traced)(*arguments))

    for first, second in zip(with_gradients(ours), with_gradients(theirs), strict=True):
        assert_close(first, second)


@pytest.mark.parametrize(
    ("given", "changes", "problem"),
    [
        (devices.A100, {}, ""),
        (devices.A100, {"dtype": "float16"}, ""),
        (devices.A100, {"head_dim": 128}, ""),
        (devices.A100, {"queries": 5}, ""),
        (devices.A100, {"mask": "causal"}, ""),
        (devices.A100, {"mask": "keys"}, ""),
        (devices.H100, {"head_dim": 256}, ""),
        (devices.A100, {"head_dim": 136}, "heads of width 136: it takes multiples of 8 up to 128"),
        (devices.H100, {"head_dim": 264}, "heads of width 264: it takes multiples of 8 up to 256"),
        (devices.A100, {"head_dim": 12}, "heads of width 12"),
        (devices.A100, {"dtype": "float32"}, "a computation in float32: it takes 16-bit floats"),
        (devices.A100, {"mask": "causal", "queries": 3}, "a causal mask for 3 queries and 197 keys"),
        (devices.T4, {}, "Tesla T4 has the compute capability 7.5: it takes 8.0 or more"),
        (devices.MI250, {}, "AMD Instinct MI250X is no NVIDIA GPU"),
        (devices.TPU, {}, "TPU v5 lite is no NVIDIA GPU"),
        (devices.CPU, {}, "cpu is no NVIDIA GPU"),
    ],
)
def test_where_the_fused_kernel_applies(given: Device, changes: dict[str, Any], problem: str) -> None:
    found = fused_problem(given, Form(**{**HALF, **changes}))
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("given", "mode", "dtype", "queries", "taken"),
    [
        (devices.A100, "auto", jnp.bfloat16, 2, True),
        (devices.A100, "fused", jnp.bfloat16, 2, True),
        (devices.A100, "plain", jnp.bfloat16, 2, False),
        (devices.A100, "auto", jnp.float32, 2, False),
        (devices.A100, "fused", jnp.bfloat16, 3, True),
        # Odd lengths are padded.
        (devices.A100, "auto", jnp.bfloat16, 3, True),
        (devices.T4, "auto", jnp.bfloat16, 2, False),
        # The CLS token alone: an error in no mode.
        (devices.A100, "fused", jnp.bfloat16, 1, False),
    ],
)
def test_the_mode_decides(
    given: Device, mode: str, dtype: Any, queries: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both kinds of layers. The kernel itself is replaced by jax's computation of the same call."""
    devices.stand_in(monkeypatch, given)
    calls = []

    def record(*arrays: jax.Array, **arguments: Any) -> jax.Array:
        calls.append(arguments)
        return fused(*arrays, **arguments, implementation="xla")

    fused = attention.fused
    monkeypatch.setattr(attention, "_refusal", lambda *_: "")
    monkeypatch.setattr(attention, "fused", record)
    x = jnp.zeros((1, 4, 1, 8), dtype)
    jax.eval_shape(functools.partial(attend, mode=mode), x[:, :queries], x, x)
    layer, params, tokens = llama_layer(dtype, mode=mode)
    mask = jnp.ones((1, 6), bool)
    jax.eval_shape(lambda p: layer(p, {}, tokens, rope=True, causal=False, mask=mask, queries=queries), params)
    assert calls == [{"causal": False}, {"causal": False, "mask": mask}][: 2 * taken]


def test_fused_where_it_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.cudnn import fused_attention_stablehlo as checks

    def no_cudnn() -> int:
        raise RuntimeError("cuDNN is not detected.")

    x = jnp.zeros((1, 2, 1, 8), jnp.bfloat16)
    devices.stand_in(monkeypatch, devices.CPU)
    with pytest.raises(UserError, match=r"model\.attention: there is no fused attention for cpu is no NVIDIA GPU: set"):
        attend(x, x, x, mode="fused")
    # What the table allows, but jax does not.
    devices.stand_in(monkeypatch, devices.A100)
    monkeypatch.setattr(checks, "check_cudnn_version", no_cudnn)
    with pytest.raises(UserError, match=rf"these shapes, which jax {jax.__version__} refuses \("):
        attend(x, x, x, mode="fused")
    assert not attention.takes_fused("auto", x, x, x)


def test_the_mode_is_part_of_a_model_s_structure() -> None:
    """Programs of two modes are never mixed up, nor are the layers of a stack left out."""
    from jaxboost.models import classifier
    from jaxboost.models.llama import FAMILIES

    def made(mode: str) -> Any:
        spec = classifier.BoostSpec(kind="rllm", config=FAMILIES["llama-tiny"])
        arguments = dict(classes=2, image_size=28, mean=(0.0,), std=(1.0,), dtype=jnp.float32, rngs=make_rngs(0))
        return attention.choose(classifier.build("vit_tiny", boost=spec, **arguments), mode)

    plain, fused = (nnx.eval_shape(functools.partial(made, mode)) for mode in ("plain", "fused"))
    nodes = [node for _, node in nnx.iter_modules(fused) if hasattr(node, "attention_mode")]
    assert len(nodes) == 3  # the encoder's stack, its last layer, and the LLM's stack
    assert {node.attention_mode for node in nodes} == {"fused"}
    assert nnx.split(plain)[0] != nnx.split(fused)[0]
    assert nnx.split(plain)[0] == nnx.split(nnx.eval_shape(lambda: made("plain")))[0]


def test_both_layouts_of_the_encoder_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*arrays: jax.Array) -> jax.Array:
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            return attend(*arrays)

    assert_same_with_gradients(attend, elsewhere, inputs())


@pytest.mark.parametrize(("queries", "keys"), [(4, 6), (3, 5), (4, 5)])
def test_the_fused_call_is_the_encoder_s_attention(queries: int, keys: int) -> None:
    fused = functools.partial(attention.fused, implementation="xla")
    assert_same_with_gradients(attend, fused, inputs(queries, keys))


@pytest.mark.parametrize("tokens", [4, 5])
def test_the_fused_call_is_the_text_encoder_s_attention(tokens: int) -> None:
    fused = functools.partial(attention.fused, causal=True, implementation="xla")
    assert_same_with_gradients(functools.partial(attend, causal=True), fused, inputs(tokens, tokens))


@pytest.mark.parametrize("form", ["all", "causal", "mask", "keys", "as Gemma 3"])
def test_the_fused_call_is_the_llm_s_attention(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped queries, rotation, each form of mask, odd lengths; the kernel's call computed by XLA, with gradients."""
    changes = dict(query_scale=0.6, qk_norm=True, post_norms=True) if form == "as Gemma 3" else {}
    layer, params, tokens = llama_layer(jnp.float32, tokens=7, **changes)
    mask = jnp.asarray([[True] * 4 + [False] * 3, [True] * 7])
    arguments = dict(rope=True, causal=form == "causal", mask=mask if form == "mask" else None)
    call = functools.partial(layer, **arguments, keys=5 if form == "keys" else None)
    by_xla = functools.partial(attention.fused, implementation="xla")

    def fused(params: Any, x: jax.Array) -> jax.Array:
        with monkeypatch.context() as patch:
            patch.setattr(attention, "takes_fused", lambda *_, **__: True)
            patch.setattr(attention, "fused", by_xla)
            return call(params, {}, x)

    assert_same_with_gradients(lambda p, x: call(p, {}, x), fused, [params, tokens])


@pytest.mark.parametrize("causal", [False, True])
def test_dropped_keys_are_hidden_keys(causal: bool) -> None:
    """PneumoLLM's emitter: without the last keys the output and every gradient are as with a mask that hides them."""
    layer, params, tokens = llama_layer(jnp.float32)
    call = functools.partial(layer, rope=True, causal=causal)
    mask = (jnp.arange(6) < 4)[None]
    assert_same_with_gradients(
        lambda p, x: call(p, {}, x, mask=mask), lambda p, x: call(p, {}, x, mask=None, keys=4), [params, tokens]
    )
    if not causal:
        every, four = (jax.jit(lambda p, n=n: call(p, {}, tokens, mask=None, keys=n)) for n in (None, 4))
        assert not np.allclose(every(params), four(params), atol=1e-2)


def llama_layer(dtype: Any, tokens: int = 6, mode: str = "auto", **changes: Any) -> tuple[Any, Any, jax.Array]:
    """apply(params, frozen, tokens, ...) of a small layer, its weights, and two rows of tokens."""
    shape = dict(width=16, heads=4, kv_heads=2, head_dim=8, mlp_width=24)
    config = LlamaConfig(**shape, eps=1e-5, rope_base=10000.0, **changes)
    apply, params, _ = abstract(lambda: attention.choose(LlamaLayer(config, dtype=dtype, rngs=make_rngs(0)), mode))
    return apply, randomise(params, seed=0), jnp.asarray(normal((2, tokens, 16), 1), dtype)


def pretend(monkeypatch: pytest.MonkeyPatch, given: Device) -> None:
    """jax traces cuDNN's kernel as for a device and a cuDNN that are not here."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    def at_least(text: str) -> bool:
        return given.capability is not None and given.capability >= tuple(map(int, text.split(".")))

    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(checks, "check_compute_capability", at_least)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda _: False)


@pytest.mark.parametrize(
    ("queries", "keys", "mask"), [(4, 6, "none"), (5, 7, "none"), (5, 5, "causal"), (5, 7, "keys")]
)
def test_several_seeds_have_the_fused_kernel_too(
    queries: int, keys: int, mask: Literal["none", "causal", "keys"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jax.vmap` of the kernel and its gradient is traced, with lengths that are padded."""
    pretend(monkeypatch, devices.H100)
    hidden = jnp.arange(keys)[None] < 3 if mask == "keys" else None

    def with_gradient(*given: jax.Array) -> Any:
        mixed, pull = jax.vjp(functools.partial(attention.fused, causal=mask == "causal", mask=hidden), *given)
        return mixed, pull(mixed)

    seeds, one = 3, (2, queries, 4, 8)
    q, k = (jax.ShapeDtypeStruct((seeds, 2, tokens, 4, 8), jnp.bfloat16) for tokens in (queries, keys))
    mixed, gradients = jax.eval_shape(jax.vmap(with_gradient), q, k, k)
    assert mixed.shape == (seeds, *one)
    assert [each.shape for each in gradients] == [q.shape, k.shape, k.shape]


@pytest.mark.parametrize("given", [devices.A100, devices.H100])
def test_the_table_says_what_jax_checks(given: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """jax's own conditions for cuDNN's kernel, asked with a device and a cuDNN that are not here."""
    pretend(monkeypatch, given)
    forms = itertools.product(("bfloat16",), (12, 128, 256), (5, 6), (6, 7), ("none", "causal", "keys"))
    for dtype, width, queries, keys, mask in forms:
        form = Form(dtype=dtype, head_dim=width, queries=queries, keys=keys, mask=mask)
        q, k = (jax.ShapeDtypeStruct((1, tokens, 2, width), dtype) for tokens in (queries, keys))
        refused = bool(attention._refusal(q, k, k, mask))
        # jax does not check what a causal mask means for other lengths.
        assert bool(fused_problem(given, form)) == refused or (mask == "causal" and queries != keys), form
        # Without the padding, odd lengths are refused.
        with monkeypatch.context() as patch:
            patch.setattr(attention, "_even", lambda x: x)
            assert bool(attention._refusal(q, k, k, mask)) == (refused or form.is_padded), form

"""The controls of the booster, each against its definition."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from jaxboost.models.boost import Boost, Precomputed, check_path
from jaxboost.models.classifier import BoostSpec, Classifier, build
from jaxboost.models.families import FAMILIES, LlamaConfig
from jaxboost.models.frozen import count, freeze, merge, split
from jaxboost.models.layers import normalize_pixels
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.rngs import make_rngs
from jaxboost.models.trained_layer import parameters, size_of
from tests.models.parity import (
    abstract,
    assert_close,
    assert_states_close,
    cotangent,
    normal,
    randomise,
    relative_change,
    torch_pull_back,
)
from tests.reference import lora, rllm, weights

CONFIG = LlamaConfig(width=48, heads=4, kv_heads=2, head_dim=8, mlp_width=56, eps=1e-6, rope_base=10000.0)
MATRICES = CONFIG.matrices
BATCH, TOKENS, WIDTH, SIDE = 2, 7, 20, 28
RANK, ALPHA = 3, 6.0


def boost(
    kind: str, *, depth: int = 1, rank: int = 0, path: str = "auto", dtype: Any = jnp.float32, alpha: float = ALPHA
) -> Boost:
    common: dict[str, Any] = dict(dtype=dtype, rngs=make_rngs(0))
    block = None
    if kind == "rllm":
        block = freeze(LlamaBlock(CONFIG, depth=depth, **common))
        if rank:
            block.add_lora(rank, alpha=alpha, rngs=common["rngs"])
    return Boost(kind, width=WIDTH, block_width=CONFIG.width, block=block, path=path, **common)


def tokens() -> np.ndarray:
    return normal((BATCH, TOKENS, WIDTH), 8)


def by_formula(kind: str) -> tuple[jax.Array, np.ndarray, np.ndarray, np.ndarray]:
    """The boosted tokens of a kind without layers, and x, F_E and F_D in float64."""
    apply, params, frozen = abstract(lambda: boost(kind))
    params = randomise(params, seed=1)
    assert frozen == {}
    encode, decode = (np.asarray(params[name]["kernel"], np.float64) for name in ("encode", "decode"))
    return apply(params, {}, tokens()), tokens().astype(np.float64), encode, decode


def test_identity_is_no_layer_with_the_residual() -> None:
    z, x, encode, decode = by_formula("identity")
    assert_close(z, (2 * (x @ encode)) @ decode)


def test_mlp_gelu_is_an_mlp_with_a_nonlinearity() -> None:
    z, x, encode, decode = by_formula("mlp_gelu")
    r = x @ encode
    assert_close(z, (r * 0.5 * (1 + scipy.special.erf(r / np.sqrt(2)))) @ decode)


def classifier(backbone: str, kind: str, **options: Any) -> Classifier:
    spec = BoostSpec(kind=kind, config=options.pop("config", CONFIG), **options)
    pixels: dict[str, Any] = dict(image_size=SIDE, mean=(0.5,), std=(0.5,))
    return build(backbone, boost=spec, classes=3, dtype=jnp.float32, rngs=make_rngs(0), **pixels)


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 1), np.uint8)


def test_identity_evaluates_the_trained_weights_of_rllm() -> None:
    """The same tree of trained weights, and nothing frozen."""
    made, shapes = {}, {}
    for kind in ("rllm", "identity"):
        made[kind], shapes[kind], frozen, _ = split(nnx.eval_shape(lambda kind=kind: classifier("vit_tiny", kind)))
    assert shapes["identity"] == shapes["rllm"]
    assert frozen == {}

    @jax.jit
    def both(params: Any) -> tuple[jax.Array, jax.Array]:
        model: Any = merge(made["identity"], params, {})
        tokens = model.encoder(normalize_pixels(jnp.asarray(images()), (0.5,), (0.5,)))
        z = 2 * tokens @ params["boost"]["encode"]["kernel"] @ params["boost"]["decode"]["kernel"]
        return model(images()), model.head(model.head_norm(z[:, 0]))

    logits, expected = both(randomise(shapes["rllm"], seed=1))
    assert_close(logits, expected)


SIZES = [
    # Encoder and block of the quick start, the papers', and DINOv2-small with SmolLM2, whose D is small for W.
    (128, 576),
    (1024, 4096),
    (384, 4096),
    (512, 4096),
    (384, 576),
    (192, 576),
    (768, 576),
]


@pytest.mark.parametrize(("width", "block_width"), SIZES)
def test_a_trained_layer_has_the_weights_of_the_linear_maps(width: int, block_width: int) -> None:
    size = size_of(width, block_width)
    assert abs(parameters(width, size) / (2 * width * block_width) - 1) < 1e-3
    assert size.mlp_width >= width // 4
    # As many heads as a standard layer has, where that leaves a quarter of the width to the MLP.
    more = dataclasses.replace(size, heads=size.heads + 1, mlp_width=width // 4)
    assert size.heads * size.head_dim == width or parameters(width, more) > 2 * width * block_width


def test_a_trained_layer_is_no_smaller_than_one_head_and_a_quarter() -> None:
    size = size_of(128, 64)
    assert (size.heads, size.head_dim, size.mlp_width) == (1, 64, 32)
    assert parameters(128, size) > 2 * 128 * 64


def test_trainable_size_of_the_controls() -> None:
    """Counted in the model itself."""
    backbone, family = "vivit_m", "llama-7b"
    sizes = {}
    for kind in ("none", "rllm", "identity", "mlp", "mlp_gelu", "layer"):
        model = nnx.eval_shape(lambda kind=kind: classifier(backbone, kind, config=FAMILIES[family]))
        sizes[kind] = count(split(model)[1])
    maps = sizes["rllm"] - sizes["none"]
    assert sizes["identity"] == sizes["mlp"] == sizes["mlp_gelu"] == sizes["rllm"]
    assert abs((sizes["layer"] - sizes["none"]) / maps - 1) < 0.01


def run_all(functions: dict[str, Callable[..., jax.Array]], params: Any, frozen: Any) -> dict[str, Any]:
    """Values and gradients of the trained weights by name, in one program."""

    @jax.jit
    def run(params: Any, frozen: Any) -> dict[str, Any]:
        found = {}
        for name, function in functions.items():
            value, pull = jax.vjp(lambda params, f=function: f(params, frozen), params)
            found[name] = value, pull(jnp.asarray(cotangent(value.shape)))[0]
        return found

    return run(params, frozen)


def assert_trees_close(found: Any, expected: Any) -> None:
    for (path, leaf), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert_close(leaf, other, name=jax.tree_util.keystr(path))


def test_the_query_of_cls_alone_is_the_trained_layers_first_token() -> None:
    made, params = {}, {}
    for path in ("auto", "full"):
        model = nnx.eval_shape(lambda path=path: classifier("vit_tiny", "layer", path=path))
        made[path], params, _, _ = split(model)
    ways = {
        path: lambda params, frozen, g=graphdef: merge(g, params, frozen)(images()) for path, graphdef in made.items()
    }
    found = run_all(ways, randomise(params, seed=2), {})
    assert_trees_close(found["auto"], found["full"])
    with pytest.raises(ValueError, match="kind layer has no LLM layer"):
        nnx.eval_shape(lambda: classifier("vit_tiny", "layer", path="absorbed"))


@functools.cache
def lora_weights(depth: int) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Graph, trained and frozen weights of a booster with LoRA on each of `depth` layers, all of them random."""
    graphdef, params, frozen, _ = split(nnx.eval_shape(lambda: boost("rllm", depth=depth, rank=RANK)))
    return graphdef, randomise(params, seed=3), randomise(frozen, seed=4)


@pytest.mark.parametrize("depth", [1, 2])
def test_lora_equals_the_restatement(depth: int) -> None:
    """Every token, and the gradients of the tokens and of all trained weights; the block has none on either side."""
    graphdef, params, frozen = lora_weights(depth)
    assert set(params["block"]["layers"]) == {"lora"}
    block = lora.add(rllm.LlamaBlock(**CONFIG.shape, depth=depth, eps=CONFIG.eps), RANK, ALPHA)
    module = rllm.Boost("rllm", width=WIDTH, block_width=CONFIG.width, block=block)
    weights.copy(_torch_state(weights.join(params, frozen)), module)
    theirs, their_x, their_gradients = torch_pull_back(module, tokens())

    @jax.jit
    def run(params: Any, frozen: Any, x: jax.Array) -> Any:
        ours, pull = jax.vjp(lambda params, x: merge(graphdef, params, frozen)(x), params, x)
        without = {**params, "block": jax.tree.map(jnp.zeros_like, params["block"])}
        return ours, pull(jnp.asarray(cotangent(ours.shape))), merge(graphdef, without, frozen)(x)

    ours, (gradients, x), without = run(params, frozen, jnp.asarray(tokens()))
    assert_close(ours, theirs)
    assert_close(x, their_x)
    assert_states_close(_torch_state(gradients), their_gradients)
    assert relative_change(without, ours) > 0.05


def _torch_state(tree: dict[str, Any]) -> weights.State:
    tree = dict(tree)
    block = {f"block.{name}": value for name, value in lora.state(tree.pop("block")).items()}
    return weights.module_state(tree) | block


def test_lora_is_the_same_by_every_path_and_merged() -> None:
    graphdef, params, frozen = lora_weights(2)

    def cls(path: str, *, merged: bool = False) -> Callable[..., jax.Array]:
        def run(params: Any, frozen: Any) -> jax.Array:
            model = merge(graphdef, params, frozen)
            model.path = path
            return model.pooled(tokens(), precomputed=model.precompute() if merged else None)

        return run

    found = run_all({"full": cls("full"), "auto": cls("auto")}, params, frozen)
    assert_trees_close(found["auto"], found["full"])

    @jax.jit
    def others(params: Any, frozen: Any) -> list[jax.Array]:
        every = merge(graphdef, params, frozen)(tokens())
        return [every[:, :1], *(cls(path, merged=True)(params, frozen) for path in ("full", "auto"))]

    for other in others(params, frozen):
        assert_close(other, found["full"][0])


def test_merged_matrices_follow_the_weights_and_replace_lora() -> None:
    graphdef, params, frozen = lora_weights(2)
    precompute: Callable[..., Precomputed | None] = jax.jit(lambda p, f: merge(graphdef, p, f).precompute())
    merged: Any = precompute(params, frozen)
    assert set(merged) == set(MATRICES)
    held, changes = frozen["block"]["layers"], params["block"]["layers"]["lora"]
    for name in MATRICES:
        change = np.asarray(changes[f"{name}_a"], np.float64) @ np.asarray(changes[f"{name}_b"], np.float64)
        assert_close(merged[name], np.asarray(held[name]) + ALPHA / RANK * change, name=name)
    zero = jax.tree.map(jnp.zeros_like, params["block"])
    plain: Any = precompute({**params, "block": zero}, frozen)
    for name in MATRICES:
        np.testing.assert_array_equal(plain[name], held[name])


def test_new_lora_changes_nothing_and_draws_nothing_else() -> None:
    """Its model starts with the same weights as the model without it, and gives the same logits."""

    @jax.jit
    def start() -> list[Any]:
        found = []
        for rank in (0, RANK):
            graphdef, params, frozen, _ = split(classifier("vit_tiny", "rllm", path="pooled", lora_rank=rank))
            found.append((params, frozen, merge(graphdef, params, frozen)(images())))
        return found

    (params, frozen, logits), (params_lora, frozen_lora, logits_lora) = start()
    factors = params_lora["boost"].pop("block")["layers"]["lora"]
    assert jax.tree.structure((params_lora, frozen_lora)) == jax.tree.structure((params, frozen))
    for one, other in zip(jax.tree.leaves((params_lora, frozen_lora)), jax.tree.leaves((params, frozen)), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(logits_lora, logits)
    for name, factor in factors.items():
        bound = 1 / np.sqrt(factor.shape[-2]) if name.endswith("_a") else 0
        assert float(np.abs(factor).max()) <= bound
        assert float(np.abs(factor).max()) >= 0.5 * bound


@pytest.mark.parametrize(("alpha", "scale"), [(0.0, 1.0), (6.0, 2.0)])
def test_alpha(alpha: float, scale: float) -> None:
    """0, the config's default, stands for the rank."""
    model: Any = nnx.eval_shape(lambda: classifier("vit_tiny", "rllm", lora_rank=3, lora_alpha=alpha))
    assert model.boost.block.layers.lora.scale == scale


def test_absorbed_is_refused_with_lora() -> None:
    with pytest.raises(ValueError, match="LoRA trains them: choose pooled instead"):
        check_path("absorbed", "rllm", rope=False, lora=True)
    with pytest.raises(ValueError, match="LoRA trains them"):
        nnx.eval_shape(lambda: classifier("vit_tiny", "rllm", lora_rank=1, path="absorbed"))
    graphdef, params, frozen = lora_weights(1)
    model = merge(graphdef, params, frozen)
    model.path = "absorbed"
    with pytest.raises(ValueError, match="LoRA trains them"):
        model.pooled(tokens())


def test_lora_in_bfloat16_is_not_merged() -> None:
    """A change below the rounding of a matrix counts, as it would not in the merged matrix."""
    graphdef, params, frozen, _ = split(nnx.eval_shape(lambda: boost("rllm", rank=RANK, dtype=jnp.bfloat16)))
    params, frozen = randomise(params, seed=3), randomise(frozen, seed=4)
    model = merge(graphdef, params, frozen)
    assert model.precompute() is None

    @jax.jit
    def both(params: Any, frozen: Any) -> list[jax.Array]:
        return [merge(graph, params, frozen).pooled(tokens()) for graph in (graphdef, lora_weights(1)[0])]

    rounded, exact = both(params, frozen)
    assert 1e-4 < relative_change(rounded, exact) < 5e-2

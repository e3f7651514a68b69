"""Every way to the boosted CLS token against the definition, boost(x, mask)[:, :1], and which way is taken when."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.models import absorbed
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import PATHS, VARIANTS, Boost, check_path
from jaxboost.models.classifier import BoostSpec, Classifier, build
from jaxboost.models.frozen import freeze, merge, split
from jaxboost.models.llama import FAMILIES, LlamaBlock, LlamaConfig
from jaxboost.models.rngs import make_rngs
from jaxboost.training.flops import count_flops
from tests.models.parity import (
    abstract,
    assert_close,
    cotangent,
    normal,
    randomise,
    relative_change,
    uniform_attention,
)
from tests.models.small import CHANNELS, IMAGE_SIZE, SMALL

GROUPED = LlamaConfig(width=48, heads=4, kv_heads=2, head_dim=8, mlp_width=56, eps=1e-5, rope_base=10000.0)
UNGROUPED = dataclasses.replace(GROUPED, kv_heads=4)
BIASED = dataclasses.replace(GROUPED, qkv_bias=True)  # as Qwen2
# More than any family has at once: a soft cap makes the keys' bias matter.
CAPPED = dataclasses.replace(
    BIASED, o_bias=True, mlp_bias=True, post_norms=True, activation="gelu_tanh", score_cap=1.5, query_scale=0.6
)
OFFSET = dataclasses.replace(GROUPED, offset_norms=True)  # as Gemma
NORMED_KEYS = dataclasses.replace(GROUPED, qk_norm=True)  # as Qwen3: no algebra without keys
# As GPT-2, and with a soft cap.
LAYER_NORMS = dataclasses.replace(CAPPED, norm="layer", post_norms=False, activation="relu", gated=False, rotary=False)
UNBIASED_LAYER_NORMS = dataclasses.replace(LAYER_NORMS, qkv_bias=False)
# Each program runs once: what LLVM would make faster would not earn its own time.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
WITH_LAYER = [kind for kind, variant in VARIANTS.items() if variant.layer]
WITHOUT_LAYER = [kind for kind, variant in VARIANTS.items() if not variant.layer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A booster, and the tokens (batch, tokens, width) that it gets."""

    kind: str = "rllm"
    config: LlamaConfig = GROUPED
    depth: int = 1
    trainable: bool = True
    rope: bool = False
    causal: bool = False
    padded: bool = False
    batch: int = 3
    tokens: int = 9
    width: int = 20

    @property
    def x(self) -> np.ndarray:
        return normal((self.batch, self.tokens, self.width), 1)

    @property
    def mask(self) -> np.ndarray | None:
        """Rows whose tokens are all real, are real at the start only, and after CLS only."""
        place = np.arange(self.tokens)
        return np.stack([place >= 0, place < 4, place > 0]) if self.padded else None

    def multiply_adds(self) -> dict[str, int]:
        return absorbed.multiply_adds(self.config, batch=self.batch, tokens=self.tokens, width=self.width)

    @functools.cache  # noqa: B019 - the cases are few, and live as long as the module
    def make(self, path: str, dtype: Any = jnp.float32) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
        """What `split` gives of the booster, with random weights that do not depend on path and dtype."""

        def boost() -> Boost:
            common = dict(dtype=dtype, rngs=make_rngs(0))
            switches = dict(rope=self.rope, causal=self.causal, path=path)
            block = None
            if VARIANTS[self.kind].layer:
                block = LlamaBlock(self.config, depth=self.depth, **common)
                block = block if self.trainable else freeze(block)
            return Boost(self.kind, width=self.width, block_width=self.config.width, block=block, **switches, **common)

        graphdef, params, frozen, _ = split(nnx.eval_shape(boost))
        return graphdef, randomise(params, seed=2), randomise(frozen, seed=3)


def cls_by(case: Case, way: str, dtype: Any = jnp.float32) -> Callable[..., jax.Array]:
    """f(params, frozen, x) -> the boosted CLS token (B, 1, d).

    way: "definition", a path, or "precomputed": absorbed, with precomputed projections.
    """
    graphdef, *_ = case.make({"definition": "full", "precomputed": "absorbed"}.get(way, way), dtype)

    def cls(params: dict[str, Any], frozen: dict[str, Any], x: jax.Array) -> jax.Array:
        boost = merge(graphdef, params, frozen)
        if way == "definition":
            return boost(x, case.mask)[:, :1]
        precomputed = boost.precompute() if way == "precomputed" else None
        assert (precomputed is not None) == (way == "precomputed")
        return boost.pooled(x, case.mask, precomputed)

    return cls


def program(case: Case, way: str) -> str:
    _, params, frozen = case.make("full")
    return str(jax.make_jaxpr(cls_by(case, way))(params, frozen, case.x))


def pull_back_all(
    functions: dict[str, Callable[..., jax.Array]], params: dict[str, Any], frozen: dict[str, Any], x: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Values of each f(params, frozen, x), and the gradients of x and params, by name; all in one program."""

    def run(params: dict[str, Any], frozen: dict[str, Any], x: jax.Array) -> dict[str, dict[str, Any]]:
        results = {}
        for name, function in functions.items():
            value, vjp = jax.vjp(lambda params, x, f=function: f(params, frozen, x), params, x)
            gradients, x_gradient = vjp(jnp.asarray(cotangent(value.shape)))
            results[name] = {"value": value, "x": x_gradient, **named_leaves(gradients)}
        return results

    return jax.tree.map(np.asarray, quick_jit(run)(params, frozen, x))


def assert_all_equal(case: Case, *ways: str) -> None:
    """Values, and the gradients of the tokens and of every trainable weight."""
    _, params, frozen = case.make("full")
    assert bool(frozen) == (VARIANTS[case.kind].layer and not case.trainable)
    results = pull_back_all({way: cls_by(case, way) for way in ("definition", *ways)}, params, frozen, case.x)
    expected = results.pop("definition")
    scales = {}
    if case.causal and case.trainable:
        # A softmax over one key is 1 whatever the key: these gradients are zero but for rounding.
        scales = {f"block/layers/{name}": np.abs(expected["block/layers/v"]).max() for name in ("q", "k")}
    if case.trainable and case.config.qkv_bias and not case.config.score_cap and not case.rope:
        # The keys' bias adds the same to all scores of a query.
        scales["block/layers/k_bias"] = np.abs(expected["block/layers/v_bias"]).max()
    for way, actual in results.items():
        for name, reference in expected.items():
            assert_close(actual[name], reference, name=f"{way}: {name}", scale=scales.get(name))


def named_leaves(tree: dict[str, Any]) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("kind", VARIANTS)
def test_full_is_the_definition(kind: str) -> None:
    case = Case(kind=kind, padded=True)
    assert program(case, "full") == program(case, "definition") != program(case, "pooled")


@pytest.mark.parametrize("kind", WITH_LAYER)
def test_every_way_for_every_kind_with_the_layer(kind: str) -> None:
    assert_all_equal(Case(kind=kind, trainable=False), "pooled", "absorbed", "precomputed")


@pytest.mark.parametrize("kind", WITHOUT_LAYER)
def test_every_way_for_every_kind_without_the_layer(kind: str) -> None:
    assert_all_equal(Case(kind=kind), "pooled")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(config=UNGROUPED), id="ungrouped"),
        pytest.param(dict(config=BIASED, padded=True), id="biases, padded"),
        pytest.param(dict(config=CAPPED), id="soft cap"),
        pytest.param(dict(config=OFFSET), id="norms by 1 + w"),
        pytest.param(dict(config=LAYER_NORMS, padded=True, tokens=24, width=12), id="LayerNorm"),
        pytest.param(dict(padded=True), id="padded"),
        pytest.param(dict(causal=True, padded=True), id="causal, padded"),
    ],
)
def test_every_way_for_one_layer(changes: dict[str, Any]) -> None:
    assert_all_equal(Case(**changes), "pooled", "absorbed", "precomputed")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(depth=3, padded=True, config=UNGROUPED), id="three layers, padded, ungrouped"),
        pytest.param(dict(depth=3, causal=True, trainable=False), id="three layers, causal, frozen"),
        pytest.param(dict(depth=2, config=CAPPED), id="two layers, soft cap"),
        pytest.param(dict(depth=2, config=UNBIASED_LAYER_NORMS, trainable=False), id="two layers, LayerNorm"),
        pytest.param(dict(width=GROUPED.width), id="as wide as the layer"),
        pytest.param(dict(width=GROUPED.width + 4, kind="hybrid"), id="wider than the layer"),
    ],
)
def test_every_way_where_maps_save_nothing(changes: dict[str, Any]) -> None:
    case = Case(**changes)
    assert_all_equal(case, "pooled", "absorbed")
    assert precomputes(case) is False


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(), id="one layer"),
        pytest.param(dict(depth=3, padded=True, config=UNGROUPED), id="three layers, padded, ungrouped"),
        pytest.param(dict(causal=True, trainable=False), id="causal, frozen"),
        pytest.param(dict(config=NORMED_KEYS, padded=True), id="normed keys"),
        pytest.param(dict(config=CAPPED), id="soft cap"),
    ],
)
def test_every_way_with_rope(changes: dict[str, Any]) -> None:
    assert_all_equal(Case(rope=True, **changes), "pooled")


def test_layers_without_the_algebra_take_pooled() -> None:
    case = Case(config=NORMED_KEYS, batch=12, tokens=16, width=12)
    assert program(case, "auto") == program(case, "pooled") != program(case, "full")
    assert not precomputes(case)
    message = "^absorbed does without keys, but these layers normalise each key.*: choose pooled"
    with pytest.raises(ValueError, match=message):
        case.make("absorbed")
    assert_all_equal(dataclasses.replace(case, batch=3, tokens=9, padded=True), "pooled")


# Shapes for which `absorbed` takes its different ways: d / D and B * N small make for "narrow", whose weights' product
# with the adapter, of a cost that does not depend on the images, pays with many of them.
WAY_SHAPES = {
    "wide": dict(batch=2, tokens=3, width=20),
    "wide, d > D": dict(batch=4, tokens=16, width=52),
    "narrow, few images": dict(batch=2, tokens=64, width=12),
    "narrow, many images": dict(batch=12, tokens=16, width=12),
}


@pytest.mark.parametrize("shape", WAY_SHAPES)
def test_ways_of_absorbed(shape: str) -> None:
    """The multiply-adds show which way is taken, and are those of `multiply_adds`; the result is the same."""
    case = Case(**WAY_SHAPES[shape])
    way = shape.split(",")[0]
    cost = case.multiply_adds()
    assert (cost["wide"] <= cost["narrow"]) == (way == "wide")
    config, B, d, D = case.config, case.batch, case.width, case.config.width
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    if way == "narrow":
        through_adapter = d * D * kv_width + B * q_width * d < B * q_width * D + B * config.heads * D * d
        assert through_adapter == ("many" in shape)

    shared = B * (2 * D * q_width + 3 * D * config.mlp_width)  # q, o, SwiGLU
    adapters = 2 * B * D * d  # encode and decode of CLS
    first = B * D * d if way == "narrow" else 0  # its residual inside the layer
    _, params, frozen = case.make("full")
    assert count_flops(cls_by(case, "absorbed"), params, frozen, case.x) == 2 * (cost[way] + shared + adapters + first)
    assert count_flops(cls_by(case, "pooled"), params, frozen, case.x) == 2 * (cost["pooled"] + shared + adapters)

    assert_all_equal(case, "absorbed")


def precomputes(case: Case, path: str = "auto") -> bool:
    graphdef, params, frozen = case.make(path)
    return merge(graphdef, params, frozen).precompute() is not None


def test_projections_are_precomputed_where_they_can_be_used() -> None:
    case = Case()
    assert precomputes(case)
    assert precomputes(case, "absorbed")
    assert not precomputes(case, "full")
    assert not precomputes(case, "pooled")
    for changes in (dict(rope=True), dict(depth=2), dict(kind="mlp"), dict(width=48), dict(width=52)):
        assert not precomputes(dataclasses.replace(case, **changes)), changes


@pytest.mark.parametrize(
    ("case", "path"),
    [
        (Case(batch=2, tokens=2), "pooled"),
        (Case(batch=2, tokens=9), "absorbed"),
        (Case(batch=12, tokens=16, width=12), "absorbed"),
        (Case(batch=12, tokens=2, width=52), "pooled"),
        (Case(batch=12, tokens=16, width=52), "absorbed"),
    ],
)
def test_auto_takes_the_cheapest_path(case: Case, path: str) -> None:
    cost = case.multiply_adds()
    assert (cost["pooled"] < min(cost["wide"], cost["narrow"])) == (path == "pooled")
    programs = {path: program(case, path) for path in PATHS}
    assert [other for other in PATHS if programs[other] == programs["auto"]] == ["auto", path]


@pytest.mark.parametrize("changes", [dict(rope=True), dict(rope=True, depth=2), dict(kind="mlp"), dict(kind="mlp_out")])
def test_auto_takes_pooled_where_absorbed_does_not_apply(changes: dict[str, Any]) -> None:
    case = Case(batch=12, tokens=16, width=12, **changes)
    assert program(case, "auto") == program(case, "pooled") != program(case, "full")


def test_check_path() -> None:
    for kind, variant in VARIANTS.items():
        for path in PATHS:
            for rope in (False, True):
                if path == "absorbed" and (rope or not variant.layer):
                    with pytest.raises(
                        ValueError, match="rope rotates them" if variant.layer else f"kind {kind} has no"
                    ):
                        check_path(path, kind, rope=rope)
                else:
                    check_path(path, kind, rope=rope)


@pytest.mark.parametrize(("changes", "words"), [(dict(rope=True), "rope"), (dict(kind="mlp"), "kind mlp")])
def test_boost_refuses_a_path_that_does_not_apply(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Case(**changes).make("absorbed")


@pytest.mark.parametrize("shape", ["wide", "narrow, many images"])
def test_bfloat16_is_close_to_the_definition_in_float32(shape: str) -> None:
    case = Case(**WAY_SHAPES[shape], kind="bare")
    _, params, frozen = case.make("full")
    functions = [
        cls_by(case, "definition"),
        *(cls_by(case, way, jnp.bfloat16) for way in ("pooled", "absorbed", "precomputed")),
    ]
    full, *halves = quick_jit(lambda *arguments: [f(*arguments) for f in functions])(params, frozen, case.x)
    for half in halves:
        difference = np.linalg.norm(half.astype(jnp.float32) - full) / np.linalg.norm(full)
        assert 1e-4 < difference < 3e-2  # below: it was computed in float32


@pytest.mark.parametrize("changes", [dict(), dict(rope=True), dict(causal=True)])
def test_attention_of_the_random_weights_is_not_uniform(changes: dict[str, Any]) -> None:
    """Without this the paths' equality would say little; under a causal mask CLS sees itself alone."""
    case = Case(kind="bare", trainable=False, **changes)
    _, params, frozen = case.make("full")
    cls = cls_by(case, "definition")
    change = relative_change(cls(params, uniform_attention(frozen), case.x), cls(params, frozen, case.x))
    assert change < 1e-6 if case.causal else change > 0.05


@pytest.mark.parametrize(("rope", "causal"), [(True, True), (True, False), (False, True), (False, False)])
def test_first_queries_of_the_layers(rope: bool, causal: bool) -> None:
    case = Case(padded=True, width=GROUPED.width)
    apply, params, _ = abstract(lambda: LlamaBlock(GROUPED, depth=2, dtype=jnp.float32, rngs=make_rngs(0)))
    call = functools.partial(apply, rope=rope, causal=causal, mask=case.mask)
    every, *some = quick_jit(lambda params, x: [call(params, {}, x, queries=queries) for queries in (None, 1, 3)])(
        randomise(params, seed=4), case.x
    )
    for queries, first in zip((1, 3), some, strict=True):
        assert_close(first, every[:, :queries])


@pytest.mark.parametrize(
    ("backbone", "queries"), [("small_vit", 1), ("small_vit", 3), ("small_vit3d", 1), ("small_vivit", 1)]
)
def test_first_queries_of_the_encoders(backbone: str, queries: int) -> None:
    spec = SMALL[backbone]
    apply, params, _ = abstract(
        lambda: spec.encoder(
            image_size=IMAGE_SIZE, channels=CHANNELS, dtype=jnp.float32, rngs=make_rngs(0), **spec.arguments
        )
    )
    params, x = randomise(params, seed=5), normal((2, *[IMAGE_SIZE] * spec.ndim, CHANNELS), 6)
    functions = {
        "asked for": lambda params, _, x: apply(params, {}, x, queries=queries),
        "cut out": lambda params, _, x: apply(params, {}, x)[:, :queries],
    }
    results = pull_back_all(functions, params, {}, x)
    for name, reference in results["cut out"].items():
        assert_close(results["asked for"][name], reference, name=name)


def classifier(backbone: str, image_size: int, spec: BoostSpec) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    def make() -> Classifier:
        return build(
            backbone,
            boost=spec,
            classes=3,
            image_size=image_size,
            mean=(0.5,),
            std=(0.5,),
            dtype=jnp.float32,
            rngs=make_rngs(0),
        )

    return split(nnx.eval_shape(make))[:3]


@pytest.mark.parametrize(("backbone", "kind"), [*((backbone, "rllm") for backbone in SMALL), ("small_vit", "mlp")])
def test_logits_do_not_depend_on_the_path(monkeypatch: pytest.MonkeyPatch, backbone: str, kind: str) -> None:
    monkeypatch.setitem(BACKBONES, backbone, SMALL[backbone])
    spec = BoostSpec(kind=kind, config=GROUPED)
    images = np.random.default_rng(7).integers(0, 256, (2, *[IMAGE_SIZE] * SMALL[backbone].ndim, 1), np.uint8)
    graphdef, *shapes = classifier(backbone, IMAGE_SIZE, spec)
    full, *_ = classifier(backbone, IMAGE_SIZE, dataclasses.replace(spec, path="full"))
    params, frozen = (randomise(tree, seed=8) for tree in shapes)

    @quick_jit
    def logits(params: dict[str, Any], frozen: dict[str, Any], images: jax.Array) -> tuple[jax.Array, ...]:
        model = merge(graphdef, params, frozen)
        precomputed = model.precompute()
        assert (precomputed is not None) == (kind == "rllm")
        return merge(full, params, frozen)(images), model(images), model(images, precomputed)

    expected, *others = logits(params, frozen, images)
    for other in others:
        assert_close(other, expected)


def test_what_the_paths_cost_in_the_papers_model() -> None:
    """ViT-S with a layer of LLaMA-7B, from shapes alone: each way does with less than the one before."""
    images = jax.ShapeDtypeStruct((128, 224, 224, 3), jnp.uint8)
    spec = BoostSpec(kind="rllm", config=FAMILIES["llama-7b"])
    flops = {}
    for path in PATHS:
        graphdef, params, frozen = classifier("vit_s", 224, dataclasses.replace(spec, path=path))
        forward = lambda p, f, x, *precomputed, g=graphdef: merge(g, p, f)(x, *precomputed)  # noqa: E731
        flops[path] = count_flops(forward, params, frozen, images)
    precomputed = jax.eval_shape(lambda p, f: merge(graphdef, p, f).precompute(), params, frozen)
    assert flops["full"] > 2 * flops["pooled"]
    assert flops["pooled"] > 2 * flops["absorbed"]
    assert flops["auto"] == flops["absorbed"]
    assert count_flops(forward, params, frozen, images, precomputed) < flops["absorbed"]


def test_the_classifier_without_boost_asks_its_encoder_for_cls_alone() -> None:
    graphdef, params, frozen = classifier("vit_s", 224, BoostSpec(kind="none"))
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
    pixels = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

    def encode(params: dict[str, Any], x: jax.Array, queries: int | None) -> jax.Array:
        return merge(graphdef, params, frozen).encoder(x, queries=queries)

    head = 2 * 2 * 384 * 3
    one, every = (count_flops(lambda p, x, q=q: encode(p, x, q), params, pixels) for q in (1, None))
    assert count_flops(lambda p, x: merge(graphdef, p, frozen)(x), params, images) == one + head
    assert one < 0.95 * every

"""Exact numbers of parameters, from shapes alone: the R-LLM code's, and those of published LLaMA models."""

import functools
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import VARIANTS
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.frozen import count, mib, split
from jaxboost.models.llama import FAMILIES, LlamaLayer
from jaxboost.models.rngs import make_rngs

LLAMA = FAMILIES["llama-7b"]
LLAMA_LAYER, LLAMA_NORM = 202_383_360, 4_096
# The released code carries a d x d layer that only "out_nn" reads; here only "out_nn" has it.
UNUSED_SKIP = 1024**2


@functools.cache
def shapes(backbone: str, spec: BoostSpec, *, classes: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trainable and frozen shapes of a classifier."""
    image_size = 224 if BACKBONES[backbone].ndim == 2 else 28
    model = nnx.eval_shape(
        lambda: build(
            backbone,
            boost=spec,
            classes=classes,
            image_size=image_size,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            dtype=jnp.float32,
            rngs=make_rngs(0),
        )
    )
    _, params, frozen, stats = split(model)
    assert stats == {}
    return params, frozen


@pytest.mark.parametrize(
    ("backbone", "kind", "trainable", "size"),
    [
        ("vivit_m", "none", 67_784_067, 258.58),
        ("vivit_s", "none", 12_892_035, 49.18),
        ("vit3d", "none", 34_170_243, 130.35),
        ("vivit_m", "rllm", 76_172_675, 290.58),
        ("vivit_m", "out_nn", 77_221_251, 294.58),
        ("vit3d", "rllm", 43_607_427 - UNUSED_SKIP, 162.35),
        ("vit3d", "out_nn", 43_607_427, 166.35),
    ],
)
def test_trainable_parameters_of_the_3d_models(backbone: str, kind: str, trainable: int, size: float) -> None:
    params, _ = shapes(backbone, BoostSpec(kind=kind, config=LLAMA))
    assert count(params) == trainable
    assert round(mib(params), 2) == size


def test_frozen_parameters() -> None:
    _, frozen = shapes("vivit_m", BoostSpec(kind="rllm", config=LLAMA))
    block = frozen["boost"]["block"]
    assert count(block["layers"]) == LLAMA_LAYER
    assert count(block["final_norm"]) == LLAMA_NORM
    assert count(frozen) == LLAMA_LAYER + LLAMA_NORM
    _, two_layers = shapes("vivit_m", BoostSpec(kind="rllm", config=LLAMA, depth=2))
    assert count(two_layers) == 2 * LLAMA_LAYER + LLAMA_NORM


def test_fine_tuning_trains_everything() -> None:
    params, frozen = shapes("vivit_m", BoostSpec(kind="rllm", config=LLAMA, trainable=True))
    assert count(params) == 278_560_131 == 279_608_707 - UNUSED_SKIP
    assert frozen == {}


def test_vit_s() -> None:
    params, frozen = shapes("vit_s", BoostSpec(kind="none"), classes=2)
    assert count(params["head"]) == 770
    assert count(params) == 21_665_664 + 770
    assert frozen == {}


@pytest.mark.parametrize("kind", VARIANTS)
def test_variants_differ_only_in_the_skip_and_in_what_is_frozen(kind: str) -> None:
    params, frozen = shapes("vivit_m", BoostSpec(kind=kind, config=LLAMA))
    assert count(params) == 76_172_675 + (UNUSED_SKIP if kind == "out_nn" else 0)
    assert count(frozen) == (LLAMA_LAYER + LLAMA_NORM if VARIANTS[kind].layer else 0)


@pytest.mark.parametrize(
    ("backbone", "ndim", "head_eps", "arguments"),
    [
        ("vit_s", 2, 1e-6, dict(patch=16, width=384, depth=12, heads=6, mlp_width=1536)),
        ("vit3d", 3, 1e-5, dict(patch=4, width=1024, depth=8, heads=8, head_dim=64, mlp_width=1024)),
        (
            "vivit_s",
            3,
            None,
            dict(patch=4, width=512, spatial_depth=4, temporal_depth=4, heads=8, head_dim=64, mlp_width=512),
        ),
        (
            "vivit_m",
            3,
            None,
            dict(patch=4, width=1024, spatial_depth=8, temporal_depth=8, heads=8, head_dim=64, mlp_width=1024),
        ),
    ],
)
def test_the_papers_backbones(backbone: str, ndim: int, head_eps: float | None, arguments: dict[str, int]) -> None:
    """Heads and eps do not show in a count."""
    spec = BACKBONES[backbone]
    assert (spec.ndim, spec.head_eps, spec.arguments) == (ndim, head_eps, arguments)


@pytest.mark.parametrize(
    ("size", "width", "published"), [("s", 384, 22_056_576), ("b", 768, 86_580_480), ("l", 1024, 304_368_640)]
)
def test_dinov2(size: str, width: int, published: int) -> None:
    """Meta's ViTs: with registers as without, at 224 pixels, and four tokens more."""
    (plain, _), (more, _) = (
        shapes(f"dinov2_{size}14{registers}", BoostSpec(kind="none")) for registers in ("", "_reg4")
    )
    # Of the published weights the resized positions and the mask token are not in the model.
    assert count((plain["encoder"], plain["head_norm"])) == published - (37**2 - 16**2) * width - width
    assert count(more["encoder"]) - count(plain["encoder"]) == 4 * width


@pytest.mark.parametrize(
    ("size", "width", "depth", "published"),
    [("s", 384, 12, 21_596_544), ("b", 768, 12, 85_660_416), ("l", 1024, 24, 303_129_600)],
)
def test_dinov3(size: str, width: int, depth: int, published: int) -> None:
    """Meta's ViTs: the mask token is not in the model, which has zeros for the keys' biases."""
    params, _ = shapes(f"dinov3_{size}16", BoostSpec(kind="none"))
    assert count((params["encoder"], params["head_norm"])) == published - width + depth * width


@pytest.mark.parametrize(
    ("backbone", "published"),
    [("siglip_b16", 92_884_224), ("siglip_l16", 315_956_224), ("siglip_so400m14", 427_680_704)],
)
def test_siglip(backbone: str, published: int) -> None:
    """The vision towers of google/siglip-base-patch16-224, -large-patch16-256 and -so400m-patch14-224."""
    params, _ = shapes(backbone, BoostSpec(kind="none"))
    # The second has positions for a grid of 16 x 16 instead of 14 x 14.
    more = (16**2 - 14**2) * 1024 if backbone == "siglip_l16" else 0
    assert count(params["encoder"]) == published - more
    assert "head_norm" not in params


@pytest.mark.parametrize(("backbone", "tokens"), [("vit_s", 197), ("vit3d", 344), ("vivit_s", 8), ("vivit_m", 8)])
def test_tokens(backbone: str, tokens: int) -> None:
    spec = BACKBONES[backbone]
    encoder = nnx.eval_shape(
        lambda: spec.encoder(
            image_size=224 if spec.ndim == 2 else 28,
            channels=3,
            dtype=jnp.float32,
            rngs=make_rngs(0),
            **spec.arguments,
        )
    )
    assert encoder.tokens == tokens


@pytest.mark.parametrize(
    ("family", "layers", "vocabulary", "embeddings", "total"),
    [
        ("llama-7b", 32, 32_000, 2, 6_738_415_616),
        ("llama-2-7b", 32, 32_000, 2, 6_738_415_616),
        ("llama-3-8b", 32, 128_256, 2, 8_030_261_248),
        ("tinyllama-1.1b", 22, 32_000, 2, 1_100_048_384),
        ("smollm2-135m", 30, 49_152, 1, 134_515_008),
    ],
)
def test_layers_make_up_the_published_models(
    family: str, layers: int, vocabulary: int, embeddings: int, total: int
) -> None:
    """A model is its layers, a final norm, and one table of token embeddings or two (input and output untied)."""
    config = FAMILIES[family]
    _, layer, *_ = split(nnx.eval_shape(lambda: LlamaLayer(config, dtype=jnp.float32, rngs=make_rngs(0))))
    assert layers * count(layer) + config.width + embeddings * vocabulary * config.width == total


@pytest.mark.parametrize(
    ("family", "heads", "kv_heads", "head_dim", "eps", "rope_base"),
    [
        ("llama-7b", 32, 32, 128, 1e-6, 10_000),
        ("llama-2-7b", 32, 32, 128, 1e-5, 10_000),
        ("llama-3-8b", 32, 8, 128, 1e-5, 500_000),
        ("tinyllama-1.1b", 32, 4, 64, 1e-5, 10_000),
        ("smollm2-135m", 9, 3, 64, 1e-5, 100_000),
    ],
)
def test_published_constants(
    family: str, heads: int, kv_heads: int, head_dim: int, eps: float, rope_base: float
) -> None:
    """What does not show in a count."""
    config = FAMILIES[family]
    assert (config.heads, config.kv_heads, config.head_dim) == (heads, kv_heads, head_dim)
    assert (config.eps, config.rope_base, config.rope_factors) == (eps, rope_base, None)

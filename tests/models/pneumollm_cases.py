"""Small PneumoLLMs, one for every row of the paper's tables."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxboost.models import pneumollm
from jaxboost.models.llama import LlamaConfig
from jaxboost.models.pneumollm import PneumoLLM, PneumoSpec
from jaxboost.models.rngs import make_rngs
from tests.models.parity import abstract, randomise

LLAMA = LlamaConfig(width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=48, eps=1e-5, rope_base=10000.0)
SPEC = PneumoSpec(
    llama=LLAMA,
    depth=2,
    every=1,
    vision_adapters=True,
    llama_adapters=True,
    tokens="engine",
    count=3,
    emitter=True,
    causal=False,
    remat=False,
)
CLIP = dict(
    patch=7,
    width=32,
    depth=3,
    heads=2,
    mlp_width=64,
    eps=1e-5,
    activation="quick_gelu",
    patch_bias=False,
    pre_norm=True,
    layer_scale=False,
)
DINO = CLIP | dict(activation="gelu", patch_bias=True, pre_norm=False, layer_scale=True, eps=1e-6)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CASES = {
    "full": (SPEC, CLIP),
    "no_emitter_remat": (dataclasses.replace(SPEC, emitter=False, remat=True), DINO),
    "simplified": (dataclasses.replace(SPEC, tokens="none", emitter=False, llama_adapters=False), DINO),
    "baseline": (
        dataclasses.replace(SPEC, tokens="none", emitter=False, vision_adapters=False, llama_adapters=False),
        CLIP,
    ),
    "coop_of_the_last": (dataclasses.replace(SPEC, tokens="coop", every=3), CLIP),
    "cocoop_causal": (dataclasses.replace(SPEC, tokens="cocoop", emitter=False, causal=True), CLIP),
    "no_llama": (dataclasses.replace(SPEC, depth=0), CLIP),
}


def build(
    spec: PneumoSpec, arguments: dict[str, Any], rngs: nnx.Rngs, remat: bool = False, columns: int = 0
) -> PneumoLLM:
    """The model of a case: `spec`, and `arguments` of its encoder; `columns` features of clinical columns."""
    return pneumollm.build(
        "clip_vit_l14",
        spec=spec,
        encoder_arguments=arguments,
        classes=2,
        columns=columns,
        image_size=28,
        mean=MEAN,
        std=STD,
        dtype=jnp.float32,
        remat=remat,
        rngs=rngs,
    )


def make(spec: PneumoSpec, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any], np.ndarray]:
    """apply(params, frozen, images), random weights of both kinds, and three grey images."""
    apply, params, weights = abstract(lambda: build(spec, arguments, make_rngs(0), remat=spec.remat))
    images = np.random.default_rng(2).integers(0, 256, (3, 28, 28, 1), np.uint8)
    return jax.jit(apply), randomise(params, seed=3), randomise(weights, seed=1), images

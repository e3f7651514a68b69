"""LaVIN against its restatement on transformers' LLaMA layers, and the paths that leave work out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost.models import frozen, lavin
from jaxboost.models.adapters import MixtureAdapter
from jaxboost.models.lavin import LavinSpec
from jaxboost.models.question import QuestionSpec
from jaxboost.models.rngs import make_rngs
from tests.models.parity import abstract, assert_close, assert_states_close, cotangent, normal, randomise
from tests.models.pneumollm_cases import CLIP, LLAMA, MEAN, STD
from tests.reference import lavin as reference
from tests.reference import rllm
from tests.reference.weights import copy, join

SPEC = LavinSpec(
    llama=LLAMA,
    depth=2,
    every=1,
    adapters="mixture",
    vision_adapters=True,
    llama_adapters=True,
    causal=True,
    remat=False,
    question=QuestionSpec(tokens=5, place=2, answers=3),
)
CASES = {
    "mixture": SPEC,
    "rep_capped": dataclasses.replace(
        SPEC, adapters="rep", remat=True, question=dataclasses.replace(SPEC.question, cap=2.0)
    ),
}


def build(spec):
    return lavin.build(
        "clip_vit_l14",
        spec=spec,
        encoder_arguments=CLIP,
        image_size=28,
        mean=MEAN,
        std=STD,
        dtype=jnp.float32,
        remat=spec.remat,
        rngs=make_rngs(0),
    )


def made(spec):
    """apply(params, frozen, images), random weights of both kinds, and three grey images."""
    apply, params, weights = abstract(lambda: build(spec))
    images = np.random.default_rng(2).integers(0, 256, (3, 28, 28, 1), np.uint8)
    return apply, randomise(params, seed=7), randomise(weights, seed=1), images


@pytest.mark.parametrize("case", CASES)
def test_scores_and_every_gradient_match_the_restatement(case):
    """Merged adapters give the same scores."""
    spec = CASES[case]
    apply, params, weights, images = made(spec)
    if spec.adapters == "mixture":
        # Routes that are far from one half, in spite of the temperature.
        for name in ("vision_adapters", "llama_adapters"):
            params[name]["router"]["kernel"] *= 5
    W, D = CLIP["width"], LLAMA.width
    model = reference.Lavin(
        every=1,
        place=2,
        cap=spec.question.cap,
        routed=spec.adapters == "mixture",
        question=weights["question"],
        encoder=reference.pneumollm.Encoder(image_size=28, **CLIP),
        vision_adapters=reference.adapters(spec.adapters, W, CLIP["depth"]),
        neck_in=torch.nn.Linear(W, 128),
        neck_out=torch.nn.Linear(128, D),
        llama=reference.Llama(LLAMA, depth=2, rope=True, causal=True),
        llama_adapters=reference.adapters(spec.adapters, D, 2),
    )
    copy(reference.state_of(join(params, weights)), model)
    scores = model(rllm.pixels(torch.from_numpy(images), MEAN, STD))
    (scores * torch.from_numpy(cotangent((3, 3)))).sum().backward()
    graphdef = frozen.split(nnx.eval_shape(lambda: build(spec)))[0]

    @jax.jit
    def ours(params):
        value, vjp = jax.vjp(lambda p: apply(p, weights, images), params)
        precomputed = frozen.merge(graphdef, params, weights).precompute()
        assert (precomputed.vision is None) == (spec.adapters == "mixture")
        return value, apply(params, weights, images, precomputed), vjp(jnp.asarray(cotangent((3, 3))))[0]

    value, merged, gradients = ours(params)
    assert_close(value, scores.detach(), name="scores")
    assert_close(merged, scores.detach(), name="merged")
    theirs = {name: p.grad for name, p in model.named_parameters()}
    gradients = reference.state_of(gradients)
    # A router's gradient is the difference of two paths: its rounding is theirs.
    scales = {name: float(theirs[name.replace("router", "down")].abs().max()) for name in theirs if "router" in name}
    assert_states_close(gradients, {name: theirs[name] for name in gradients}, scales=scales)


def test_routes_of_the_llm_depend_on_the_modality_token_alone():
    _, params, weights, _ = made(SPEC)
    model = frozen.merge(frozen.split(nnx.eval_shape(lambda: build(SPEC)))[0], params, weights)
    routes = np.asarray(model.routes())
    assert routes.shape == (2, 2)
    np.testing.assert_allclose(routes.sum(1), 1, rtol=1e-6)
    assert not np.allclose(routes, 0.5, atol=1e-4)
    model.modality[...] = model.modality[...] + jnp.asarray(normal((LLAMA.width,), 3))
    assert not np.allclose(model.routes(), routes, atol=1e-4)


def test_mixture_starts_as_the_identity_and_drops_in_training():
    adapter = MixtureAdapter(16, rngs=make_rngs(0))
    x = jnp.asarray(normal((2, 3, 16), 0))
    np.testing.assert_array_equal(adapter(x, key=None), x)
    adapter.up[...] = jnp.ones((2, 2, 4, 8))
    assert not np.array_equal(adapter(x, key=jax.random.key(0)), adapter(x, key=None))


def test_trained_parameters_of_the_papers_size():
    """3.77 M in PneumoLLM's Table 5: all of these without the modality token are 3,773,104."""
    from jaxboost.models.llama import FAMILIES

    paper = dataclasses.replace(SPEC, llama=FAMILIES["llama-7b"], depth=32, every=4)
    model = nnx.eval_shape(
        lambda: lavin.build(
            "clip_vit_l14", spec=paper, image_size=224, mean=MEAN, std=STD, dtype=jnp.float32, remat=False,
            rngs=make_rngs(0),
        )
    )  # fmt: skip
    _, params, weights, _ = frozen.split(model)
    assert frozen.count(params) == 3_773_104 + 4096
    assert frozen.count(params["vision_adapters"]) == 24 * 20_490
    assert weights["question"]["answers"].shape == (3, 4096)
    assert model.tokens == 6 + 5

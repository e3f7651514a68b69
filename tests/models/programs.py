"""The compiled program of every kind of model, as a digest: python -m tests.models.programs prints them as JSON."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models import frozen
from jaxboost.models.boost import LAYER
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.rngs import make_rngs
from tests.models import pneumollm_cases
from tests.models.pneumollm_cases import CASES, LLAMA

SIZE = 28


def digests() -> dict[str, str]:
    """Case -> SHA-256 of the StableHLO text of its evaluation and of its training.

    Of training it is the loss, and where the model is rematerialised its gradient.
    """
    return {name: _digest(make, shape, gradient="remat" in name) for name, make, shape in _cases()}


def _cases() -> Iterator[tuple[str, Callable[[nnx.Rngs], nnx.Module], tuple[int, ...]]]:
    def classifier(backbone: str, **options: Any) -> Callable[[nnx.Rngs], nnx.Module]:
        spec = BoostSpec(
            kind=options.pop("kind", "none"),
            config=LLAMA,
            depth=2,
            trainable=options.pop("trainable", False),
            lora_rank=options.pop("lora_rank", 0),
        )
        given = dict(boost=spec, classes=3, image_size=SIZE, mean=(0.5,), std=(0.5,), dtype=jnp.float32) | options
        return lambda rngs: build(backbone, **given, rngs=rngs)

    flat, cube = (2, SIZE, SIZE, 3), (2, SIZE, SIZE, SIZE, 1)
    # Kinds of different modules; the others add up the same ones differently.
    for kind in ("none", "rllm", "out_nn", "mlp_gelu", LAYER):
        yield f"vit_tiny {kind}", classifier("vit_tiny", kind=kind), flat
    yield "vit_tiny trainable", classifier("vit_tiny", kind="rllm", trainable=True), flat
    yield "vit_tiny LoRA", classifier("vit_tiny", kind="rllm", lora_rank=2), flat
    yield "vit_tiny frozen", classifier("vit_tiny", kind="rllm", frozen=True), flat
    yield "vit_tiny stochastic depth, remat", classifier("vit_tiny", kind="rllm", drop_path=0.1, remat=True), flat
    yield "vit3d_tiny", classifier("vit3d_tiny", kind="rllm"), cube
    yield "vivit_tiny", classifier("vivit_tiny", kind="hybrid"), cube
    yield "resnet18", classifier("resnet18"), flat
    yield "resnet18_acs", classifier("resnet18_acs"), cube
    for name, (spec, arguments) in CASES.items():
        yield f"pneumollm {name}", lambda rngs, s=spec, a=arguments: pneumollm_cases.build(s, a, rngs), flat


def _digest(make: Callable[[nnx.Rngs], nnx.Module], shape: tuple[int, ...], *, gradient: bool) -> str:
    graphdef, *shapes = frozen.split(nnx.eval_shape(lambda: make(make_rngs(0))))
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)

    def evaluate(images: jax.Array, *weights: Any) -> jax.Array:
        model = frozen.merge(graphdef, *weights)
        return model(images, model.precompute())

    def train(params: Any, weights: Any, stats: Any, images: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            model = frozen.merge(graphdef, params, weights, stats)
            return model(images, key=jax.random.key(0)).sum(), frozen.statistics(model)

        # JAX makes the gradient from the loss's program alone, unless Flax says what to compute again for it.
        return jax.grad(loss, has_aux=True)(params) if gradient else loss(params)

    text = jax.jit(evaluate).lower(images, *shapes).as_text() + jax.jit(train).lower(*shapes, images).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    print(json.dumps(digests()))

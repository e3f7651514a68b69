"""FLOPs of a training run: what a frozen encoder costs once, and what each forward pass costs."""

import dataclasses
from typing import Any

from jaxboost.config.types import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """FLOPs for an image, in forward passes.

    Attributes:
      once: of the encoder, if its tokens are computed once; else 0.
      each: of a forward pass of what is left.
    """

    once: int
    each: int


def training_cost(config: Config, count: int) -> TrainingCost:
    """Counts the FLOPs of a run; nothing is computed.

    Args:
      config: of a run that trains.
      count: number of images in all splits: tokens of many images may be too large to be kept.

    Raises:
      UserError: a mistake in the config.
    """
    import jax
    import jax.numpy as jnp

    from jaxboost.models.frozen import merge
    from jaxboost.runs import assembly, datasets
    from jaxboost.systems import prepare
    from jaxboost.training.flops import count_flops

    info = datasets.describe(config)
    system = prepare(config, info, with_weights=False)
    weights = (system.params, system.frozen, system.stats)
    image = jax.ShapeDtypeStruct((1, *[config.model.image_size] * info.ndim, info.channels), jnp.uint8)
    # CoOp encodes the classes once for a whole batch.
    batch = config.train.batch_size if "clip" in config else 1
    images = jax.ShapeDtypeStruct((batch, *image.shape[1:]), image.dtype)
    whole = count_flops(lambda images, *each: merge(system.graphdef, *each)(images), images, *weights) // batch

    def encode(images: jax.Array, *each: Any) -> jax.Array:
        return merge(system.graphdef, *each).encode(images)

    fixed = assembly.fixed_tokens(config)
    if fixed is None:
        return TrainingCost(once=0, each=whole)
    shape = jax.eval_shape(encode, image, *weights).shape[1:]
    if fixed.gigabytes(shape, count) > fixed.most_gb:
        return TrainingCost(once=0, each=whole)
    once = count_flops(encode, image, *weights)
    return TrainingCost(once=once, each=whole - once)

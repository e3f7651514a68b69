"""Which of Pillow's filters resamples an image, drawn at random."""

import jax
import jax.numpy as jnp

from jaxboost.data.pipeline.augment import FILTERS
from jaxboost.models.resample import NUMBERS


def filter_numbers(interpolation: str) -> tuple[int, ...]:
    """The numbers of the filters of `augment.interpolation`, one of which is drawn each time."""
    return tuple(NUMBERS[each.name] for each in FILTERS[interpolation])


def draw_filter(key: jax.Array, interpolation: str) -> jax.Array:
    """The number of a filter, int32 ()."""
    numbers = jnp.array(filter_numbers(interpolation))
    return numbers[jax.random.randint(key, (), 0, len(numbers))]

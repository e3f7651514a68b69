"""RandAugment inside a step, with the operations and ranges of pipeline/rand_augment.py.

An operation is one of four kinds, so that a program that computes all of them for each image, as `vmap` makes it, has
four to compute and not fourteen: a table of grey values, a geometric map, a change of colour, a change of sharpness.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxboost.data.pipeline import rand_augment as host
from jaxboost.models import resample
from jaxboost.training.on_device import filters, pictures

_NUMBER = {name: number for number, name in enumerate(host.OPERATIONS)}
_NOTHING, _TABLE, _MAP, _COLOR, _SHARPNESS = range(5)
# The axis along which a geometric map interpolates: 1 for x, 2 for y; rotations do along both.
_ALONG = {"ShearX": 1, "TranslateXRel": 1, "ShearY": 2, "TranslateYRel": 2}
_TAPS = range(-1, 3)  # pixels that an interpolation mixes
_KINDS = {
    **dict.fromkeys(host.GEOMETRIC, _MAP),
    "Color": _COLOR,
    "Sharpness": _SHARPNESS,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation on one image.

    Attributes:
      number: its index in `rand_augment.OPERATIONS`, int32 ().
      applied: whether it is applied, bool ().
      value: what `rand_augment.argument` returns, float32 (); anything for an operation without an argument.
      filter: number of the interpolation filter of a geometric map, int32 ().
    """

    number: jax.Array
    applied: jax.Array
    value: jax.Array
    filter: jax.Array


def draw(key: jax.Array, *, magnitude: float, std: float, increasing: bool, interpolation: str) -> Operation:
    """Draws an operation; for the arguments see `rand_augment.rand_augment`."""
    number_key, on_key, level_key, sign_key, filter_key = jax.random.split(key, 5)
    number = jax.random.randint(number_key, (), 0, len(host.OPERATIONS))
    level = jnp.clip(magnitude + std * jax.random.normal(level_key), 0.0, host.HIGHEST)
    sign = jnp.where(jax.random.bernoulli(sign_key), -1.0, 1.0)
    return Operation(
        number=number,
        applied=jax.random.bernoulli(on_key, host.PROBABILITY),
        value=argument(number, level, sign, increasing=increasing),
        filter=filters.draw_filter(filter_key, interpolation),
    )


def argument(number: jax.Array, level: jax.Array, sign: jax.Array, *, increasing: bool) -> jax.Array:
    """What `rand_augment.argument` returns, as a float; `sign` is -1 for `negative`, else 1."""
    fraction = level / host.HIGHEST
    values = dict.fromkeys(host.OPERATIONS, jnp.zeros(()))
    values |= {name: sign * fraction * most for name, most in host.GEOMETRIC.items()}
    factor = jnp.maximum(0.1, 1 + sign * fraction * 0.9) if increasing else 0.1 + fraction * 1.8
    values |= dict.fromkeys(host.ENHANCERS, factor)
    values["SolarizeAdd"] = jnp.trunc(fraction * 110)
    for name, most in host.LEVELS.items():
        part = jnp.trunc(fraction * most)
        values[name] = most - part if increasing else part
    return jnp.stack([values[name] for name in host.OPERATIONS])[number]


def apply(image: jax.Array, operation: Operation) -> jax.Array:
    """Applies an operation to an image (S, S, C)."""
    kinds = jnp.array([_KINDS.get(name, _TABLE) for name in host.OPERATIONS])
    kind = jnp.where(operation.applied, kinds[operation.number], _NOTHING)
    branches = (
        lambda image, operation: image,
        _through_table,
        _mapped,
        lambda image, operation: pictures.saturation(image, operation.value),
        lambda image, operation: pictures.sharpness(image, operation.value),
    )
    return jax.lax.switch(kind, branches, image, operation)


def _through_table(image: jax.Array, operation: Operation) -> jax.Array:
    """An operation that gives each grey value of a channel a new one."""
    C, number, value = image.shape[-1], operation.number, operation.value
    # (C, 256); a histogram takes longer than all the rest, and a single operation needs one.
    needs = number == _NUMBER["Equalize"]
    counts = jax.lax.cond(needs, _histograms, lambda image: jnp.zeros((C, 256), jnp.int32), image)
    grey = jnp.arange(256)
    ramp = grey.astype(jnp.uint8)

    def posterize() -> jax.Array:
        bits = value.astype(jnp.int32)
        return grey >> (8 - bits) << (8 - bits)

    tables = {
        "AutoContrast": lambda: _stretched(image),
        "Equalize": lambda: _equalized(counts),
        "Invert": lambda: 255 - grey,
        "Posterize": posterize,
        "Solarize": lambda: jnp.where(grey < value, grey, 255 - grey),
        "SolarizeAdd": lambda: jnp.where(grey < 128, jnp.minimum(grey + value.astype(jnp.int32), 255), grey),
        "Brightness": lambda: pictures.brightness(ramp, value),
        "Contrast": lambda: pictures.blend(jnp.floor(pictures.grey(image).mean(dtype=jnp.float32) + 0.5), ramp, value),
    }
    rows = [tables.get(name, lambda: grey) for name in host.OPERATIONS]
    found = jax.lax.switch(number, [_spread(row, channels=C) for row in rows])
    return jnp.stack([found[channel][image[..., channel]] for channel in range(C)], axis=-1)


def _spread(row: Callable[[], jax.Array], *, channels: int) -> Callable[[], jax.Array]:
    """A function that returns the table as uint8 (channels, 256)."""
    return lambda: jnp.broadcast_to(row().astype(jnp.uint8), (channels, 256))


def _histograms(image: jax.Array) -> jax.Array:
    """How often each channel has each grey value, int32 (C, 256)."""
    return jnp.stack([jnp.zeros(256, jnp.int32).at[channel.astype(jnp.int32)].add(1) for channel in _channels(image)])


def _channels(image: jax.Array) -> list[jax.Array]:
    """Each channel of an image, (S S,): on a CPU, sums over channels that lie side by side are slow."""
    return [image[..., number].reshape(-1) for number in range(image.shape[-1])]


def _stretched(image: jax.Array) -> jax.Array:
    """AutoContrast's table (C, 256): the lowest value that occurs becomes 0, the highest 255."""
    grey = jnp.arange(256)
    channels = _channels(image)
    low, high = (
        jnp.stack([least(each) for each in channels])[:, None].astype(jnp.int32) for least in (jnp.min, jnp.max)
    )
    span = jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip((grey - low) * 255 // span, 0, 255), grey)


def _equalized(counts: jax.Array) -> jax.Array:
    """Equalize's table (C, 256), in Pillow's whole numbers."""
    grey = jnp.arange(256)
    last = 255 - jnp.argmax((counts > 0)[:, ::-1], axis=1, keepdims=True)
    step = (counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, last, axis=1)) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where((step > 0) & ((counts > 0).sum(1, keepdims=True) > 1), table, grey)


def _mapped(image: jax.Array, operation: Operation) -> jax.Array:
    """A geometric map; pixels from outside the image get the fill value."""
    S, C = image.shape[0], image.shape[-1]
    a, b, c, d, e, f = _matrix(operation, side=S)
    centre = jnp.arange(S) + 0.5
    x = a * centre + b * centre[:, None] + c
    y = d * centre + e * centre[:, None] + f
    inside = (x >= 0) & (x < S) & (y >= 0) & (y < S)
    # A shear or translation interpolates along one axis: the place along the other is the middle of a pixel.
    kind = jnp.array([_ALONG.get(name, 0) for name in host.OPERATIONS])[operation.number]
    branches = (_along_both, _along_x, _along_y)
    values = jax.lax.switch(kind, branches, image, x - 0.5, y - 0.5, operation.filter)
    # Decimals are cut off, as in Pillow; the small number keeps the rounding of float32 from losing a whole level.
    values = jnp.clip(jnp.trunc(values + 1e-3), 0, 255).astype(jnp.uint8)
    fill = jnp.array(host.FILL["RGB"] if C == 3 else (host.FILL["L"],), jnp.uint8)
    return jnp.where(inside[..., None], values, fill)


def _along_both(image: jax.Array, x: jax.Array, y: jax.Array, number: jax.Array) -> jax.Array:
    """Values (S, S, C) of an image at places (S, S), in pixels from the middle of the first; the border repeats."""
    left, top = jnp.floor(x), jnp.floor(y)
    lines = [_mixed([_at(image, left + across, top + down) for across in _TAPS], x - left, number) for down in _TAPS]
    return _mixed(lines, y - top, number)


def _along_x(image: jax.Array, x: jax.Array, y: jax.Array, number: jax.Array) -> jax.Array:
    """As `_along_both`, for whole numbers `y`."""
    left = jnp.floor(x)
    return _mixed([_at(image, left + tap, jnp.rint(y)) for tap in _TAPS], x - left, number)


def _along_y(image: jax.Array, x: jax.Array, y: jax.Array, number: jax.Array) -> jax.Array:
    """As `_along_both`, for whole numbers `x`."""
    top = jnp.floor(y)
    return _mixed([_at(image, jnp.rint(x), top + tap) for tap in _TAPS], y - top, number)


def _at(image: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Values (S, S, C) of an image at places (S, S), whole numbers; the border repeats."""
    S = image.shape[0]
    column, row = (jnp.clip(place.astype(jnp.int32), 0, S - 1) for place in (x, y))
    return image.reshape(S * S, -1)[row * S + column].astype(jnp.float32)


def _mixed(taps: Sequence[jax.Array], part: jax.Array, number: jax.Array) -> jax.Array:
    """Mixes values (S, S, C) at `_TAPS` for places `part` of a pixel after 0."""
    return sum(
        (weight[..., None] * tap for weight, tap in zip(_weights(part, number), taps, strict=True)), jnp.zeros(())
    )


def _matrix(operation: Operation, *, side: int) -> tuple[jax.Array, ...]:
    """The map from a pixel (x, y) of the result to (ax + by + c, dx + ey + f) in the image."""
    number, value = operation.number, operation.value
    zero, one = jnp.zeros(()), jnp.ones(())
    angle = -jnp.deg2rad(value)
    cos, sin, half = jnp.cos(angle), jnp.sin(angle), side / 2
    matrices = {
        "Rotate": (cos, sin, half - half * cos - half * sin, -sin, cos, half + half * sin - half * cos),
        "ShearX": (one, value, zero, zero, one, zero),
        "ShearY": (one, zero, zero, value, one, zero),
        "TranslateXRel": (one, zero, value * side, zero, one, zero),
        "TranslateYRel": (one, zero, zero, zero, one, value * side),
    }
    table = jnp.stack([jnp.stack(matrices.get(name, (one, zero, zero, zero, one, zero))) for name in host.OPERATIONS])
    return tuple(table[number])


def _weights(part: jax.Array, number: jax.Array) -> tuple[jax.Array, ...]:
    """Weights of the pixels at `_TAPS`, for a place `part` of a pixel after 0; bicubic has a = -1 here."""
    t, u = part, 1 - part
    cubic = (-t * u * u, 1 - 2 * t * t + t**3, 1 - 2 * u * u + u**3, -u * t * t)
    linear = (jnp.zeros_like(t), u, t, jnp.zeros_like(t))
    return tuple(jnp.where(number == resample.BICUBIC, one, other) for one, other in zip(cubic, linear, strict=True))

"""Volumes for 2D encoders: slices along the axes, each encoded as an image, and pooled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxboost.models import resample
from jaxboost.models.backbones import Backbone
from jaxboost.models.encoder import Encoder, Traits
from jaxboost.models.layers import layer_norm, linear, torch_init

AXES = (0, 1, 2)
MEAN, ATTENTION = "mean", "attention"
POOLINGS = (MEAN, ATTENTION)
# Of the attention's hidden layer, as in the code that Ilse et al. released.
GATE_WIDTH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slices:
    """Which slices of a volume a 2D encoder sees.

    Attributes:
      count: K, slices along each axis; see `positions`.
      axes: of the volume, along which slices are taken, each of AXES at most once.
      size: side to which slices are resized, in pixels; 0: they keep the volume's.
      pooling: one of POOLINGS: how a head makes one feature of the slices' features.
    """

    count: int
    axes: tuple[int, ...] = AXES
    size: int = 0
    pooling: str = MEAN

    @property
    def total(self) -> int:
        """M, the number of slices of a volume."""
        return self.count * len(self.axes)


def positions(side: int, count: int) -> list[int]:
    """The numbers of `count` of `side` slices: the middles of as many equal parts; of one part the slice side / 2."""
    return [(2 * number + 1) * side // (2 * count) for number in range(count)]


class SliceEncoder(nnx.Module):
    """A 2D encoder that makes one token of each slice of a volume: (B, M, W), without CLS.

    A slice's token is what a head reads of an image: CLS or the mean of the tokens, after the encoder's final norm.
    The encoder sees B * M images at once, so that its memory is that of a batch of so many images.

    Args:
      encoder: for images.
      norm: the norm before a head; None: there is none.
      slices: see `Slices`.
    """

    def __init__(self, encoder: Encoder, norm: nnx.LayerNorm | None, slices: Slices):
        self.encoder, self.norm, self.slices = encoder, norm, slices
        self.width, self.tokens = encoder.width, slices.total

    @property
    def traits(self) -> Traits:
        """See `SlicedBackbone.traits`."""
        return _traits_of(self.encoder.traits)

    def views(self, volumes: jax.Array) -> jax.Array:
        """The slices of uint8 volumes (B, S, S, S, c): uint8 (B, M, s, s, c), all along the first axis first.

        They are resized as `resample.resize` does it: as images of a data set and views of a baseline are. In a slice
        the two other axes keep their order.
        """
        along = []
        for axis in self.slices.axes:
            numbers = np.array(positions(volumes.shape[1 + axis], self.slices.count))
            along.append(jnp.moveaxis(jnp.take(volumes, numbers, axis=1 + axis), 1 + axis, 1))
        found = jnp.concatenate(along, axis=1)
        size = self.slices.size or found.shape[2]
        return jax.vmap(jax.vmap(lambda image: resample.resize(image, size)))(found)

    def __call__(self, views: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """Normalised views (B, M, s, s, C) -> the first Q tokens (B, Q, W).

        Args:
          views: of `views`.
          queries, key: see `encoder.Encoder`.
        """
        B, M = views.shape[:2]
        images = views.reshape(B * M, *views.shape[2:])
        if self.encoder.traits.cls_first:
            pooled = self.encoder(images, queries=1, key=key)[:, 0]
        else:
            pooled = self.encoder(images, key=key).mean(1)
        if self.norm is not None:
            pooled = self.norm(pooled)
        return pooled.reshape(B, M, -1)[:, :queries]


class GatedPool(nnx.Module):
    """Gated attention pooling (Ilse et al. 2018, "Attention-based deep multiple instance learning", equation 9).

    (B, M, W) -> (B, 1, W): the mean of the tokens with the weights softmax_m(w . (tanh(V x_m) * sigmoid(U x_m))).

    Args:
      width: W.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def made(fan_in: int, fan_out: int) -> nnx.Linear:
            return linear(fan_in, fan_out, bias=False, init=torch_init, dtype=dtype, rngs=rngs)

        self.content, self.gate, self.score = made(width, GATE_WIDTH), made(width, GATE_WIDTH), made(GATE_WIDTH, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The pooled token (B, 1, W)."""
        scores = self.score(jnp.tanh(self.content(x)) * jax.nn.sigmoid(self.gate(x)))
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=1).astype(x.dtype)
        return (weights * x).sum(1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlicedBackbone(Backbone):
    """A row of `BACKBONES` for images that takes volumes by their slices. The norm before the head is in its encoder.

    Attributes:
      slices: see `Slices`.
      norm_eps: the row's `head_eps`.
    """

    slices: Slices
    norm_eps: float | None

    @property
    def traits(self) -> Traits:
        """Those of the encoder of images, but it gives tokens without CLS, and has no stacks of layers."""
        return _traits_of(self.encoder.traits)

    def build(self, *, image_size: int, dtype: jnp.dtype, rngs: nnx.Rngs, **changes: Any) -> SliceEncoder:
        """The encoder with random weights; `image_size`: of the volumes; the rest: see `Backbone.build`."""
        side = self.slices.size or image_size
        encoder = super().build(image_size=side, dtype=dtype, rngs=rngs, **changes)
        norm = None
        if self.norm_eps is not None:
            norm = layer_norm(encoder.width, eps=changes.get("eps", self.norm_eps), dtype=dtype, rngs=rngs)
        return SliceEncoder(encoder, norm, self.slices)


def sliced(row: Backbone, slices: Slices | None) -> Backbone:
    """The row of a 2D encoder that sees slices; without slices the same row."""
    if slices is None:
        return row
    return SlicedBackbone(
        encoder=row.encoder, ndim=3, arguments=row.arguments, head_eps=None, slices=slices, norm_eps=row.head_eps
    )


def _traits_of(traits: Traits) -> Traits:
    changes: dict[str, Any] = dict(gives_tokens=True, cls_first=False, takes_grey=False, has_first_tokens=False)
    return dataclasses.replace(traits, **changes, stacks=())

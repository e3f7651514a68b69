"""The protocol of the encoders: what the rest of the package uses of an encoder, whatever its class."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax

from jaxboost.models.adapters import Adaptation, Projection
from jaxboost.models.layers import LinearInit, torch_init


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of blocks inside an encoder.

    Attributes:
      name: the encoder's attribute with the stack: a `transformer.Transformer`, a list of blocks, or a list of stages,
        each with a list `blocks`. What else a stage has stands before its blocks.
      followers: the encoder's attributes that count as part of the stack's last block, such as the norm after it.
    """

    name: str
    followers: tuple[str, ...] = ()


def block_places(stack: Mapping[Any, Any]) -> list[tuple[tuple[Any, ...], int]]:
    """The places of the blocks in a tree of a stack's weights, in the order in which they run, see `Stack`.

    Args:
      stack: as `frozen.split` gives it; places without weights in it are left out.

    Returns:
      (place, count): a single block has a count of 0; stacked blocks have one place, and a leading axis of that length.
    """
    if "last" in stack:  # a `transformer.Transformer`
        stacked = stack.get("blocks")
        first = [(("blocks",), len(jax.tree.leaves(stacked)[0]))] if stacked else []
        return [*first, (("last",), 0)]
    found: list[tuple[tuple[Any, ...], int]] = []
    for number in sorted(stack):
        blocks = stack[number].get("blocks")
        found += [((number,), 0)] if blocks is None else [((number, "blocks", each), 0) for each in sorted(blocks)]
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties of an encoder's class, its class attribute `traits`.

    Attributes:
      gives_tokens: it returns several tokens, as a booster needs them. False: it returns one pooled feature, as one
        token.
      cls_first: the first token is CLS, which a head reads. False: the tokens are a grid, and a head reads their mean.
      has_statistics: it has batch norms, whose running statistics change in training where their weights are trained.
      has_stochastic_depth: its constructor takes `drop_path`.
      takes_grey: pixels may have a single channel, which stands for three equal ones.
      has_first_tokens: it is a `BlockEncoder`: PneumoLLM can read its CLS token after each block.
      stacks: its stacks of blocks, in the order in which they run.
      matrices: names of the linear layers in its blocks, which LoRA can change; () for an encoder without them.
      head_init: initialisation of the linear head after it.
      names: the family of encoders in `convert` that its published weights belong to, None if there are none.
      window: (low, high), the stored values that were 0 and 1 in the training of its published weights, such as
        Hounsfield units; None: grey levels without a physical scale.
      defaults: the constructor's arguments that converted weights always record, and their defaults.
      size_problem: (image size, the constructor's arguments) -> why the encoder does not take such images; "" if it
        does. Multiples of the argument `patch` are checked apart.
      open: the constructor's arguments that one set of weights fits with several values -> these values; () for any.
    """

    gives_tokens: bool = True
    cls_first: bool = True
    has_statistics: bool = False
    has_stochastic_depth: bool = True
    takes_grey: bool = False
    has_first_tokens: bool = False
    stacks: tuple[Stack, ...] = ()
    matrices: tuple[str, ...] = ()
    head_init: LinearInit = torch_init
    names: str | None = None
    window: tuple[float, float] | None = None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size_problem: Callable[[int, Mapping[str, Any]], str] = lambda image_size, arguments: ""
    open: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


class Encoder(Protocol):
    """An `nnx.Module` that turns images into tokens.

    The constructor takes keywords only: image_size, channels, dtype, remat, rngs, and the arguments of its row in
    `backbones.BACKBONES`.

    Attributes:
      traits: see `Traits`.
      width: W, features of a token.
      tokens: N, the number of tokens, CLS included if there is one.
    """

    traits: ClassVar[Traits]
    width: int
    tokens: int

    def __call__(self, images: jax.Array, *, queries: int | None = None, key: jax.Array | None = None) -> jax.Array:
        """Images (B, S, S, C) or volumes (B, S, S, S, C) -> the first Q tokens (B, Q, W).

        Args:
          images: normalised pixels.
          queries: Q, None for all N.
          key: random key of a training step (stochastic depth, batch statistics); None in evaluation.
        """
        ...


class BlockEncoder(Encoder, Protocol):
    """An encoder whose CLS token can be read after each block, with an adapter in front of each attention.

    Attributes:
      depth: L, the number of blocks.
    """

    depth: int

    def first_tokens(self, images: jax.Array, adaptation: Adaptation | None = None) -> jax.Array:
        """The CLS token after each block, (L, B, W).

        Args:
          images: normalised pixels.
          adaptation: the adapter in front of each attention, with a leading axis of length L.
        """
        ...

    def qkv(self) -> Projection:
        """The blocks' projections to queries, keys and values, stacked: kernel (L, W, 3HK), bias (L, 3HK)."""
        ...

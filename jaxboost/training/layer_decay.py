"""Layer-wise decay of the learning rate: lower layers have lower rates.

As in BEiT's fine-tuning (Bao et al. 2021, section 3.2): the rate of layer l of L is multiplied by decay^(L + 1 - l). A
layer is a block of a ViT, of a ConvNeXt or Swin, or of a ResNet or EfficientNet, as in timm. What makes the grid of a
stage smaller counts as part of the stage's first block. ConvNeXt's authors count three blocks as one layer: take the
cube root of their decay here, 0.93 for 0.8.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.encoder import block_places
from jaxboost.models.frozen import Tree


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies the updates of a model's encoder by `factors`."""

    def scaled(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(lambda update, factor: update * factor, updates, factors(updates, decay))

    return optax.stateless(scaled)


def factors(params: Tree, decay: float) -> Tree:
    """The factor of each weight's learning rate: a number, or an array that broadcasts over stacked layers.

    Layer l of L has decay^(L + 1 - l). The weights before the first layer (patches or stem, positions, CLS) count as
    layer 0. Everything after the encoder (booster, head and their norms) has the factor 1. If only the last blocks are
    trained, they have the factors that they have in the whole encoder.
    """
    encoder = params.get("encoder", {})
    layers, followers = _Layers(), {}
    for name, following in _stacks(params).items():
        layers.add(encoder[name], name)
        followers.update(dict.fromkeys(following, layers.depth))

    def factor(path: tuple[Any, ...], leaf: jax.Array) -> float | jax.Array:
        names = tuple(entry.key for entry in path)
        if names[0] != "encoder":
            return 1.0
        return decay ** (layers.depth + 1 - layers.number(names[1:], leaf, followers.get(names[1], 0)))

    return jax.tree_util.tree_map_with_path(factor, params)


def _stacks(params: Tree) -> dict[str, tuple[str, ...]]:
    """The encoder's trained stacks of layers in the order in which they run, each with its followers (see `Stack`)."""
    found: dict[str, tuple[str, ...]] = {}
    for backbone in BACKBONES.values():
        for stack in backbone.traits.stacks:
            if stack.name in params.get("encoder", {}):
                found[stack.name] = found.get(stack.name, ()) + stack.followers
    return found


@dataclasses.dataclass
class _Layers:
    """The layers of an encoder's stacks, numbered from 1.

    Attributes:
      depth: how many there are.
      first: place in the encoder -> number of the layer that everything there belongs to, unless a longer place has
        another one. Of stacked layers it is that of the first of them.
    """

    depth: int = 0
    first: dict[tuple[Any, ...], int] = dataclasses.field(default_factory=dict)

    def add(self, stack: Tree, name: str) -> None:
        """Numbers the layers of one more stack of this name."""
        for place, count in block_places(stack):
            # What else a stage has stands before its first block.
            for start in (place, place[:1]):
                self.first.setdefault((name, *start), self.depth + 1)
            self.depth += count or 1

    def number(self, names: tuple[Any, ...], leaf: jax.Array, otherwise: int) -> int | jax.Array:
        """Number of the layer of a weight of the encoder; an array for stacked layers."""
        places = [names[:length] for length in range(len(names), 0, -1) if names[:length] in self.first]
        if not places:
            return otherwise
        first = self.first[places[0]]
        if places[0][-1] != "blocks":
            return first
        return (first + jnp.arange(len(leaf), dtype=jnp.float32)).reshape(-1, *[1] * (leaf.ndim - 1))

"""What of a frozen encoder is trained all the same: its last block, or low-rank changes of its matrices (LoRA)."""

from collections.abc import Collection, Iterator
from typing import Any

import jax
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models.encoder import Encoder, block_places
from jaxboost.models.frozen import Frozen, dequantize
from jaxboost.models.layers import Linear
from jaxboost.models.lora import Lora


def last_block(encoder: Encoder) -> list[nnx.Module]:
    """The last block of an encoder, and what follows it inside the encoder, see `encoder.Stack`."""
    stack = encoder.traits.stacks[-1]
    block = getattr(encoder, stack.name)
    place, _ = block_places(nnx.to_pure_dict(nnx.state(block)))[-1]
    for name in place:
        block = block[name] if isinstance(name, int) else getattr(block, name)
    return [block, *(getattr(encoder, name) for name in stack.followers)]


def add_lora(
    encoder: Encoder, names: Collection[str], *, rank: int, alpha: float | None = None, rngs: nnx.Rngs
) -> None:
    """Adds trained low-rank changes (`lora.Lora`) to linear layers of all blocks; they are zero at first.

    They are trained even if the encoder is frozen, provided that it was frozen before.

    Args:
      encoder: the encoder.
      names: of the linear layers, some of `Traits.matrices`.
      rank: r.
      alpha: the changes are scaled by alpha / r; None: alpha is r.
      rngs: of the changes' first factors.

    Raises:
      UserError: the blocks have no linear layer of one of these names, or the rank is above that of a matrix.
    """
    known = encoder.traits.matrices
    if not names or not {*names} <= {*known}:
        raise ArgumentError(
            f"LoRA of {', '.join(names) or 'no matrix'}: the encoder's are {', '.join(known) or 'none'}"
        )
    for path, layer in _layers(encoder):
        if path[-1] in names:
            made = Lora({"kernel": layer.kernel.shape}, rank=rank, alpha=rank if alpha is None else alpha, rngs=rngs)
            layer.lora = nnx.data(made)  # `data`, because the attribute was None


def merged_lora(encoder: Encoder) -> dict[str, jax.Array]:
    """The matrices with LoRA's changes merged into them: place -> ([L,] in, out) in float32; {} without LoRA."""
    return {
        _place(path): layer.lora.merged("kernel", dequantize(layer.kernel.get_value()))
        for path, layer in _layers(encoder)
        if layer.lora is not None
    }


def with_merged(encoder: Any, matrices: dict[str, jax.Array]) -> Any:
    """A copy without LoRA that computes with `matrices`, the result of `merged_lora`; inside a traced function."""
    copy = jax.tree.map(lambda leaf: leaf, encoder)
    for path, layer in _layers(copy):
        if layer.lora is not None:
            layer.lora = None
            layer.kernel = Frozen(matrices[_place(path)])
    return copy


def _layers(encoder: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The linear layers of the encoder's blocks, each with its place in the encoder."""
    stacks = {stack.name for stack in encoder.traits.stacks}
    for path, node in list(nnx.iter_modules(encoder)):
        if path and path[0] in stacks and isinstance(node, Linear):
            yield path, node


def _place(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))

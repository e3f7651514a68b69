"""The control with one trained transformer layer in place of R-LLM's linear maps and frozen block."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.layers import LinearInit
from jaxboost.models.transformer import Block

HEAD_DIM = 64  # of the ViTs' and of most LLMs' heads
EPS = 1e-6  # of ViT's norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSize:
    """The shape of a trained layer: heads of width `head_dim`, and the hidden width of its MLP."""

    heads: int
    head_dim: int
    mlp_width: int


def parameters(width: int, size: LayerSize) -> int:
    """Number of weights of a layer of this width: attention and MLP with biases, and two LayerNorms."""
    inner, mlp_width = size.heads * size.head_dim, size.mlp_width
    attention = width * 3 * inner + 3 * inner + inner * width + width
    mlp = width * mlp_width + mlp_width + mlp_width * width + width
    return attention + mlp + 4 * width


def size_of(width: int, block_width: int) -> LayerSize:
    """The shape with as many weights as R-LLM's two linear maps, 2 W D, as nearly as possible.

    The attention has W / 64 heads of width 64, as in a standard layer, and the MLP takes the rest of the weights. A
    step of its width is 2 W + 1 weights, so the sum is within 1 / (2 D) of 2 W D. If D is below about 2.3 W, so many
    heads would leave less than W / 4 to the MLP's width: then there are fewer heads, as many as leave W / 4. If D is so
    small that one head leaves less (below about W / 4 + 128), the layer has one head and W / 4, and more weights than
    the linear maps; `describe` and the log give the number.

    Args:
      width: W, the width of the encoder's tokens.
      block_width: D, the width of the LLM's layers.
    """
    head_dim, least = min(HEAD_DIM, width), max(1, width // 4)
    for heads in range(max(1, width // head_dim), 0, -1):
        rest = 2 * width * block_width - parameters(width, LayerSize(heads=heads, head_dim=head_dim, mlp_width=0))
        if (mlp_width := round(rest / (2 * width + 1))) >= least:
            return LayerSize(heads=heads, head_dim=head_dim, mlp_width=mlp_width)
    return LayerSize(heads=1, head_dim=head_dim, mlp_width=least)


class TrainedLayer(nnx.Module):
    """Tokens x (B, N, W) -> (B, N, W): a pre-norm transformer layer (`transformer.Block`), all of it trained.

    It has the methods of `boost.Boost` that a classifier calls.

    Args:
      width: W.
      block_width: D; with W it decides the layer's size, see `size_of`.
      path: "full" computes all tokens where only the first is read; all others compute its query alone.
      mean: `pooled` gives the mean of all tokens, not the first one; see `boost.Boost`.
      init: of the linear layers.
      dtype: of the computation.
      rngs: of the weights.
    """

    def __init__(
        self,
        *,
        width: int,
        block_width: int,
        path: str = "auto",
        mean: bool = False,
        init: LinearInit,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.path, self.mean = path, mean
        self.layer = Block(
            width,
            **dataclasses.asdict(size_of(width, block_width)),
            qkv_bias=True,
            activation="gelu",
            layer_scale=False,
            eps=EPS,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output for every token (B, N, W)."""
        return self.layer(x)

    def pooled(self, x: jax.Array, precomputed: object = None) -> jax.Array:
        """The output for the first token only, self(x)[:, :1], (B, 1, W), or the mean of all outputs."""
        del precomputed  # always None
        if self.mean:
            return self(x).mean(1, keepdims=True)
        return self(x)[:, :1] if self.path == "full" else self.layer(x, queries=1)

    @property
    def reads_all_tokens(self) -> bool:
        """Always: the first token attends to the others."""
        return True

    def precompute(self) -> None:
        """Nothing can be computed before the tokens are known."""
        return None

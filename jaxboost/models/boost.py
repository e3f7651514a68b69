"""The booster of R-LLM (Lai et al. 2024): two linear adapters around a frozen LLaMA layer, in all its variants."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models.layers import linear, torch_init
from jaxboost.models.llama import LlamaBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What a variant computes: F_D([F_L](r) [+ r]) [+ skip(x)] with r = F_E x.

    Attributes:
      layer: the LLaMA layer F_L is there (without it, F_D F_E x: a control with the adapters alone).
      inner: r is added to F_L's output, before F_D.
      outer: skip from the tokens x to the result.
    """

    layer: bool = True
    inner: bool = False
    outer: Literal["none", "identity", "leaky_relu"] = "none"


FORMS = {
    "rllm": Form(inner=True),  # R-LLM, eq. 2
    "out": Form(outer="identity"),  # Out R-LLM, eq. 3
    "hybrid": Form(inner=True, outer="identity"),  # Hybrid R-LLM, section 4.4.3
    "bare": Form(),  # no residual: LM4VisualEncoding's form
    "out_nn": Form(outer="leaky_relu"),  # released code only: a trained, nonlinear skip
    "mlp": Form(layer=False),  # the paper's MLP control (section 4.4.1), as the 3D code has it
    "mlp_out": Form(layer=False, outer="identity"),  # the same control, as the 2D code has it
}
KINDS = ("none", *FORMS)


class Boost(nnx.Module):
    """Tokens x (B, N, d) -> boosted tokens (B, N, d), through width D of the LLaMA layer.

    Args:
      kind: a key of FORMS.
      width: d, the encoder's width.
      block_width: D.
      block: F_L, None for the controls without it.
      rope, causal: whether F_L keeps LLaMA's rotary embedding and causal mask (both off in the paper, section 3.1).
        The causal mask leaves the pooled CLS token, which comes first, nothing but itself to look at.
    """

    def __init__(
        self,
        kind: str,
        *,
        width: int,
        block_width: int,
        block: LlamaBlock | None,
        rope: bool,
        causal: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.form = FORMS[kind]
        if self.form.layer != (block is not None):
            raise ValueError(f"boost kind {kind!r} and block {block} do not go together")
        self.rope, self.causal = rope, causal
        self.encode = linear(width, block_width, bias=False, init=torch_init, dtype=dtype, rngs=rngs)  # F_E
        self.block = block  # F_L
        self.decode = linear(block_width, width, bias=False, init=torch_init, dtype=dtype, rngs=rngs)  # F_D
        skip = self.form.outer == "leaky_relu"
        self.skip = linear(width, width, bias=False, init=torch_init, dtype=dtype, rngs=rngs) if skip else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """mask (B, N) is True where a token is real; None where all are."""
        r = self.encode(x)
        h = r
        if self.block is not None:
            h = self.block(r, rope=self.rope, causal=self.causal, mask=mask)
            if self.form.inner:
                h = h + r
        z = self.decode(h)
        if self.form.outer == "identity":
            z = z + x
        elif self.skip is not None:
            z = z + jax.nn.leaky_relu(self.skip(x))
        return z

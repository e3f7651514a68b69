"""The booster of R-LLM (Lai et al. 2024): two linear adapters around a frozen LLaMA layer, in all its variants."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.models import absorbed
from jaxboost.models.layers import layer_of, linear, torch_init, vit_init
from jaxboost.models.llama import LlamaBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoostVariant:
    """What a variant computes: F_D([F_L](r) [+ r]) [+ skip(x)] with r = F_E x.

    Attributes:
      layer: the LLaMA layer F_L is there (without it, F_D F_E x: a control with the adapters alone).
      inner: r is added to F_L's output, before F_D.
      outer: skip from the tokens x to the result.
    """

    layer: bool = True
    inner: bool = False
    outer: Literal["none", "identity", "leaky_relu"] = "none"


VARIANTS = {
    "rllm": BoostVariant(inner=True),  # R-LLM, eq. 2
    "out": BoostVariant(outer="identity"),  # Out R-LLM, eq. 3
    "hybrid": BoostVariant(inner=True, outer="identity"),  # Hybrid R-LLM, section 4.4.3
    "bare": BoostVariant(),  # no residual: LM4VisualEncoding's form
    "out_nn": BoostVariant(outer="leaky_relu"),  # released code only: a trained, nonlinear skip
    "mlp": BoostVariant(layer=False),  # the paper's MLP control (section 4.4.1), as the 3D code has it
    "mlp_out": BoostVariant(layer=False, outer="identity"),  # the same control, as the 2D code has it
}
KINDS = ("none", *VARIANTS)


PATHS = ("auto", "full", "pooled", "absorbed")
# U(+-1 / sqrt(fan_in)) as in the released 3D code, or N(0, .02) as in the 2D code.
INITS = {"uniform": torch_init, "normal": vit_init}


def check_path(path: str, kind: str, *, rope: bool) -> None:
    """Raises ValueError where a way to compute the booster does not apply; "auto" always does."""
    if path not in PATHS:
        raise ValueError(f"{path!r} is none of {', '.join(PATHS)}")
    if path == "absorbed" and not VARIANTS[kind].layer:
        raise ValueError(f"absorbed does without the layer's keys and values, but kind {kind} has no layer")
    if path == "absorbed" and rope:
        raise ValueError("absorbed does without keys, but rope turns them: the path is pooled")


class Boost(nnx.Module):
    """Tokens x (B, N, d) -> boosted tokens (B, N, d), through width D of the LLaMA layer.

    Args:
      kind: a key of VARIANTS.
      width: d, the encoder's width.
      block_width: D.
      block: F_L, None for the controls without it.
      rope, causal: whether F_L keeps LLaMA's rotary embedding and causal mask (both off in the paper, section 3.1).
        The causal mask leaves the pooled CLS token, which comes first, nothing but itself to look at.
      path: how `pooled` gets its result; the result is the same. "full" computes all tokens. "pooled" computes keys and
        values of all tokens and the rest for CLS alone. "absorbed" computes no keys and values (`models.absorbed`),
        which rope does not allow. "auto" takes the cheapest by the shapes.
      init: a key of INITS: how the adapters' weights are drawn.
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
        path: str,
        init: str = "uniform",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.variant = VARIANTS[kind]
        if self.variant.layer != (block is not None):
            raise ValueError(f"boost kind {kind!r} and block {block} do not go together")
        check_path(path, kind, rope=rope)
        self.rope, self.causal, self.path = rope, causal, path
        how = INITS[init]
        self.encode = linear(width, block_width, bias=False, init=how, dtype=dtype, rngs=rngs)  # F_E
        self.block = block  # F_L
        self.decode = linear(block_width, width, bias=False, init=how, dtype=dtype, rngs=rngs)  # F_D
        skip = self.variant.outer == "leaky_relu"
        self.skip = linear(width, width, bias=False, init=how, dtype=dtype, rngs=rngs) if skip else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The definition: every token (B, N, d); mask (B, N) is True where a token is real, None where all are."""
        r = self.encode(x)
        h = r
        if self.block is not None:
            h = self.block(r, rope=self.rope, causal=self.causal, mask=mask)
        return self._decode(h, r, x)

    def pooled(
        self, x: jax.Array, mask: jax.Array | None = None, precomputed: absorbed.Precomputed | None = None
    ) -> jax.Array:
        """self(x, mask)[:, :1], the boosted CLS token (B, 1, d), by `path`.

        Args:
          precomputed: what `precompute` gave, None to do without.
        """
        path = self._choose_path(*x.shape[:2], has_precomputed=precomputed is not None)
        if path == "full":
            return self(x, mask)[:, :1]
        cls = x[:, :1]
        r = self.encode(cls)
        if self.block is None:
            h = r
        elif path == "pooled":
            h = self.block(self.encode(x), rope=self.rope, causal=self.causal, mask=mask, queries=1)
        else:
            h = absorbed.run_block(
                self.block, x, self.encode.kernel[...], causal=self.causal, mask=mask, precomputed=precomputed
            )
        return self._decode(h, r, cls)

    @property
    def reads_all_tokens(self) -> bool:
        """Whether `pooled` needs more of its tokens than the first."""
        return self.block is not None or self.path == "full"

    def precompute(self) -> absorbed.Precomputed | None:
        """What the absorbed path can form before it sees tokens; None where that path or a saving is not to be had."""
        width, block_width = self.encode.kernel.shape
        if self.block is None or self.block.depth > 1 or self.rope or width >= block_width:
            return None
        if self.path not in ("auto", "absorbed"):
            return None
        return absorbed.precompute(layer_of(self.block.layers, 0), self.encode.kernel[...].astype(self.block.dtype))

    def _decode(self, h: jax.Array, r: jax.Array, x: jax.Array) -> jax.Array:
        """F_D with the residuals, from h = F_L(r), or r without F_L, and the tokens r and x to skip from."""
        if self.block is not None and self.variant.inner:
            h = h + r
        z = self.decode(h)
        if self.variant.outer == "identity":
            z = z + x
        elif self.skip is not None:
            z = z + jax.nn.leaky_relu(self.skip(x))
        return z

    def _choose_path(self, batch: int, tokens: int, *, has_precomputed: bool) -> str:
        if self.path != "auto":
            return self.path
        if self.block is None or self.rope:
            return "pooled"
        if has_precomputed or self.block.depth > 1:
            return "absorbed"
        width = self.encode.kernel.shape[0]
        cost = absorbed.multiply_adds(self.block.config, batch=batch, tokens=tokens, width=width)
        return "pooled" if min(cost, key=cost.get) == "pooled" else "absorbed"

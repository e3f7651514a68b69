"""The booster of R-LLM (Lai et al. 2024): two linear maps around a frozen LLaMA layer, in all its variants."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError
from jaxboost.models import absorbed
from jaxboost.models.activations import gelu
from jaxboost.models.families import Architecture
from jaxboost.models.layers import layer_of, linear, torch_init, vit_init
from jaxboost.models.llama import LlamaBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoostVariant:
    """What a variant computes from tokens x: r = F_E x; h = F_L(r) [+ r]; result F_D h [+ skip(x)].

    Attributes:
      layer: whether it has the LLaMA layers F_L. Without them F_L(r) is r, or GELU(r): controls.
      gelu: without layers, F_L(r) is GELU(r).
      inner: the inner residual: r is added to the output of F_L, before F_D.
      outer: the outer residual, skip(x): none, x itself, or leaky_relu(W x) with a trained W.
    """

    layer: bool = True
    gelu: bool = False
    inner: bool = False
    outer: Literal["none", "identity", "leaky_relu"] = "none"


VARIANTS = {
    "rllm": BoostVariant(inner=True),  # R-LLM, equation 2: F_D (F_L(r) + r)
    "out": BoostVariant(outer="identity"),  # Out R-LLM, equation 3: F_D F_L(r) + x
    "hybrid": BoostVariant(inner=True, outer="identity"),  # Hybrid R-LLM, section 4.4.3: F_D (F_L(r) + r) + x
    "bare": BoostVariant(),  # no residual, as in LM4VisualEncoding: F_D F_L(r)
    "out_nn": BoostVariant(outer="leaky_relu"),  # released code only: F_D F_L(r) + leaky_relu(W x)
    "mlp": BoostVariant(layer=False),  # the MLP control (section 4.4.1) of the 3D code: F_D r
    "mlp_out": BoostVariant(layer=False, outer="identity"),  # the MLP control of the 2D code: F_D r + x
    # Controls that the paper lacks. The first has the weights of "rllm", so it can also evaluate a trained R-LLM
    # without its block.
    "identity": BoostVariant(layer=False, inner=True),  # F_L is the identity: F_D (r + r)
    "mlp_gelu": BoostVariant(layer=False, gelu=True),  # an MLP with a nonlinearity, no residual: F_D GELU(r)
}
LAYER = "layer"  # the control with a trained layer, `trained_layer.TrainedLayer`
KINDS = ("none", *VARIANTS, LAYER)

PATHS = ("auto", "full", "pooled", "absorbed")
# What a head reads: the first token, CLS, or the mean of all tokens.
FIRST, MEAN = "first", "mean"
# U(+-1 / sqrt(fan_in)) as in the released 3D code, or N(0, .02) as in the 2D code.
INITS = {"uniform": torch_init, "normal": vit_init}
_ABSORBED_LORA = "absorbed does without keys and values, but LoRA trains them: choose pooled instead"

# What one set of weights allows to compute once: projections for the absorbed path, or the matrices of the layers with
# LoRA merged into them.
Precomputed = absorbed.Precomputed | dict[str, jax.Array]


def has_block(kind: str) -> bool:
    """Whether a kind of booster has LLaMA layers."""
    return kind in VARIANTS and VARIANTS[kind].layer


def check_path(
    path: str,
    kind: str,
    *,
    rope: bool,
    lora: bool = False,
    pool: str = FIRST,
    architecture: Architecture | None = None,
) -> None:
    """Raises ArgumentError if a path is unknown or cannot compute this kind of booster; "auto" always can.

    Args:
      path: one of PATHS.
      kind: of the booster.
      rope: whether its layers keep their rotary embedding.
      lora: whether its layers have LoRA.
      pool: see `Boost`.
      architecture: of its layers; None: it is not known yet.
    """
    if path not in PATHS:
        raise ArgumentError(f"{path!r} is none of {', '.join(PATHS)}")
    if pool == MEAN and path in ("pooled", "absorbed"):
        raise ArgumentError(
            f"{path} computes the first token alone, but this encoder has no CLS token and its head reads the mean of"
            " all tokens: choose full"
        )
    if path == "absorbed" and not has_block(kind):
        raise ArgumentError(f"absorbed does without the LLM layer's keys and values, but kind {kind} has no LLM layer")
    if path == "absorbed" and lora:
        raise ArgumentError(_ABSORBED_LORA)
    if path == "absorbed" and rope:
        raise ArgumentError("absorbed does without keys, but rope rotates them: choose pooled instead")
    if path == "absorbed" and architecture is not None and architecture.not_absorbed:
        raise ArgumentError(f"absorbed does without keys, but {architecture.not_absorbed}: choose pooled instead")


class Boost(nnx.Module):
    """Tokens x (B, N, d) -> boosted tokens (B, N, d), through width D of the LLaMA layers.

    Trained are the linear maps F_E (d, D) and F_D (D, d), and W of kind "out_nn". The block is trained too unless the
    caller freezes it with `frozen.freeze`; `load_block` returns it frozen.

    Example::

      block = jaxboost.load_block("blocks/smollm2-135m")  # frozen
      self.boost = Boost("rllm", width=384, block=block, rngs=rngs)  # in the model's constructor
      ...
      tokens = self.boost(tokens)  # every token (B, N, 384), for models that pool their tokens
      cls = self.boost.pooled(tokens)  # or the first token alone (B, 1, 384), which costs less

    Args:
      kind: a key of VARIANTS.
      width: d, the width of the tokens.
      block: the LLaMA layers F_L, with or without LoRA (`LlamaBlock.add_lora`); None for a kind without them.
      block_width: D, for a kind without layers. Other kinds take it from the block.
      rope, causal: whether F_L keeps LLaMA's rotary embedding and causal mask. Both are off in the paper (section 3.1).
        Under a causal mask the CLS token, which comes first, sees only itself.
      path: how `pooled` computes its result; all give the same result. "full" computes all tokens. "pooled" computes
        keys and values of all tokens, and the rest for CLS alone. "absorbed" computes no keys and values (see
        `models.absorbed`), which works neither with rope nor with LoRA, nor for layers that normalise their keys.
        "auto" chooses the cheapest path for the shapes.
      pool: what `pooled` gives: FIRST, the boosted first token; MEAN, the mean of all boosted tokens, for encoders
        without a CLS token, whose only path is "full".
      init: a key of INITS: how the linear maps are initialised.
      dtype: of the linear maps' computation; their weights are float32.
      rngs: of the linear maps' weights.

    Raises:
      UserError: an argument is unknown, or kind, block and block_width do not go together.
    """

    def __init__(
        self,
        kind: str,
        *,
        width: int,
        block: LlamaBlock | None = None,
        block_width: int | None = None,
        rope: bool = False,
        causal: bool = False,
        path: str = "auto",
        pool: str = FIRST,
        init: str = "uniform",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, choices in (("kind", kind, VARIANTS), ("init", init, INITS)):
            if value not in choices:
                raise ArgumentError(f"boost {name} {value!r} is unknown, valid: {', '.join(choices)}")
        check_path(path, kind, rope=rope, pool=pool, architecture=None if block is None else block.config)
        hidden = _block_width(kind, block, block_width)
        self.variant = VARIANTS[kind]
        self.rope, self.causal, self.path, self.pool = rope, causal, path, pool
        draw = INITS[init]
        self.encode = linear(width, hidden, bias=False, init=draw, dtype=dtype, rngs=rngs)  # F_E
        self.block = block  # F_L
        self.decode = linear(hidden, width, bias=False, init=draw, dtype=dtype, rngs=rngs)  # F_D
        skip = self.variant.outer == "leaky_relu"
        self.skip = linear(width, width, bias=False, init=draw, dtype=dtype, rngs=rngs) if skip else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Boosts every token (B, N, d).

        Args:
          x: tokens (B, N, d).
          mask: (B, N), True where a token is real; None if all are.
        """
        return self._all(self.block, x, mask)

    def pooled(self, x: jax.Array, mask: jax.Array | None = None, precomputed: Precomputed | None = None) -> jax.Array:
        """Boosts the CLS token only: self(x, mask)[:, :1], (B, 1, d), computed by `path`; the mean if `pool` says so.

        Args:
          x: tokens (B, N, d), CLS first.
          mask: (B, N), True where a token is real; None if all are.
          precomputed: the result of `precompute` for these weights; None if it was not computed.
        """
        path = self._choose_path(*x.shape[:2], has_precomputed=precomputed is not None)
        block, projections = self.block, None
        if isinstance(precomputed, absorbed.Precomputed):
            projections = precomputed
        elif block is not None and precomputed is not None:
            block = block.with_merged(precomputed)
        if path == "full":
            boosted = self._all(block, x, mask)
            return boosted[:, :1] if self.pool == FIRST else _mean(boosted, mask)
        cls = x[:, :1]
        r = self.encode(cls)
        if block is None:
            h = self._without_layers(r)
        elif path == "pooled":
            h = block(self.encode(x), rope=self.rope, causal=self.causal, mask=mask, queries=1)
        else:
            h = absorbed.run_block(
                block, x, self.encode.kernel[...], causal=self.causal, mask=mask, precomputed=projections
            )
        return self._decode(h, r, cls)

    @property
    def reads_all_tokens(self) -> bool:
        """Whether `pooled` needs all tokens, not only the first."""
        return self.block is not None or self.path == "full" or self.pool == MEAN

    def precompute(self) -> Precomputed | None:
        """What one set of weights allows to compute before tokens are seen; made again whenever a weight changes.

        With LoRA these are the merged matrices. In bfloat16 they are not merged, because small changes would be lost.
        Else they are the projections of the absorbed path: None if that path cannot be used, or if precomputing would
        not make it cheaper.
        """
        width, block_width = self.encode.kernel.shape
        if self.block is not None and self.block.has_lora:
            return self.block.merged_lora() if self.block.dtype == jnp.float32 else None
        if self.block is None or self.block.depth > 1 or self.rope or width >= block_width:
            return None
        if self.path not in ("auto", "absorbed") or self.pool == MEAN or self.block.config.not_absorbed:
            return None
        return absorbed.precompute(layer_of(self.block.layers, 0), self.encode.kernel[...].astype(self.block.dtype))

    def _all(self, block: LlamaBlock | None, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Every boosted token (B, N, d), by the layers `block`."""
        r = self.encode(x)
        h = self._without_layers(r) if block is None else block(r, rope=self.rope, causal=self.causal, mask=mask)
        return self._decode(h, r, x)

    def _without_layers(self, r: jax.Array) -> jax.Array:
        """F_L(r) of the kinds without LLaMA layers."""
        return gelu(r) if self.variant.gelu else r

    def _decode(self, h: jax.Array, r: jax.Array, x: jax.Array) -> jax.Array:
        """Applies F_D and the residuals to h = F_L(r); r and x are what the residuals add."""
        if self.variant.inner:
            h = h + r
        z = self.decode(h)
        if self.variant.outer == "identity":
            z = z + x
        elif self.skip is not None:
            z = z + jax.nn.leaky_relu(self.skip(x))
        return z

    def _choose_path(self, batch: int, tokens: int, *, has_precomputed: bool) -> str:
        has_lora = self.block is not None and self.block.has_lora
        if self.path == "absorbed" and has_lora:
            raise ArgumentError(_ABSORBED_LORA)
        if self.pool == MEAN:
            return "full"
        if self.path != "auto":
            return self.path
        if self.block is None or self.rope or has_lora or self.block.config.not_absorbed:
            return "pooled"
        if has_precomputed or self.block.depth > 1:
            return "absorbed"
        width = self.encode.kernel.shape[0]
        cost = absorbed.multiply_adds(self.block.config, batch=batch, tokens=tokens, width=width)
        return "pooled" if min(cost, key=lambda way: cost[way]) == "pooled" else "absorbed"


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of the real tokens, (B, N, d) -> (B, 1, d)."""
    if mask is None:
        return x.mean(1, keepdims=True)
    return jnp.mean(x, axis=1, keepdims=True, where=mask[..., None])


def _block_width(kind: str, block: LlamaBlock | None, width: int | None) -> int:
    """D, from the block or, for a kind without layers, from the argument."""
    has_layer = VARIANTS[kind].layer
    if has_layer and block is None:
        raise ArgumentError(f"boost kind {kind!r} and no block do not go together: pass the LLaMA layers as block")
    if not has_layer and block is not None:
        raise ArgumentError(
            f"boost kind {kind!r} and a block do not go together: it has no LLaMA layers, leave block out"
        )
    if block is None:
        if width is None:
            raise ArgumentError(f"boost kind {kind!r} has no LLaMA layers: give its hidden width as block_width")
        return width
    if width not in (None, block.config.width):
        raise ArgumentError(f"block_width {width} is not the block's width {block.config.width}: leave it out")
    return block.config.width

"""Decoder layers of the LLaMA family: a table of names for each naming scheme, and checks of the tensors."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.convert.formats.tensors import Tensors
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.parts import FINAL_NORM, LLAMA, Part, Selection, check_tensors
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One naming scheme of LLaMA checkpoints.

    Attributes:
      prefix: beginning of a layer's tensor names, with `{layer}` for its number.
      weights: our name of a weight -> the rest of the tensor's name.
      final_norm: name of the norm after the last layer.
      interleaved: whether the rotary embedding pairs rows (0, 1), (2, 3) ... of q and k (Meta, GGUF) instead of
        (0, K/2), (1, K/2 + 1) ... (Hugging Face and ours).
      buffers: endings of constants that are recomputed, not weights.
    """

    prefix: str
    weights: Mapping[str, str]
    final_norm: str
    interleaved: bool
    buffers: tuple[str, ...] = ()

    def names(self, layer: int) -> dict[str, str]:
        """Our name of each weight of `layer` -> its tensor's name."""
        prefix = self.prefix.format(layer=layer)
        return {weight: prefix + ending for weight, ending in self.weights.items()}


HUGGING_FACE = Layout(
    prefix="model.layers.{layer}.",
    weights={
        "attention_norm": "input_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "o": "self_attn.o_proj.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
    },
    final_norm="model.norm.weight",
    interleaved=False,
    buffers=("rotary_emb.inv_freq",),
)

# A LlamaModel that was saved without its language-model head.
HUGGING_FACE_HEADLESS = dataclasses.replace(HUGGING_FACE, prefix="layers.{layer}.", final_norm="norm.weight")

META = Layout(
    prefix="layers.{layer}.",
    weights={
        "attention_norm": "attention_norm.weight",
        "q": "attention.wq.weight",
        "k": "attention.wk.weight",
        "v": "attention.wv.weight",
        "o": "attention.wo.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "feed_forward.w1.weight",
        "up": "feed_forward.w3.weight",
        "down": "feed_forward.w2.weight",
    },
    final_norm="norm.weight",
    interleaved=True,
    buffers=("rope.freqs",),
)

GGUF = Layout(
    prefix="blk.{layer}.",
    weights={
        "attention_norm": "attn_norm.weight",
        "q": "attn_q.weight",
        "k": "attn_k.weight",
        "v": "attn_v.weight",
        "o": "attn_output.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
    },
    final_norm="output_norm.weight",
    interleaved=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaSource:
    """LLaMA layers in a checkpoint.

    Attributes:
      tensors: the checkpoint.
      layout: its naming scheme.
      config: shape and constants of the layers.
      n_layers: how many there are.
    """

    kind = LLAMA
    tensors: Tensors
    layout: Layout
    config: LlamaConfig
    n_layers: int

    def select(self, layers: str, *, final_norm: bool) -> Selection:
        """Checks layers, as `parse_layers` takes them, and returns what is converted.

        Raises:
          UserError: the checkpoint does not hold them as its configuration describes them.
        """
        numbers = parse_layers(layers, self.n_layers)
        check(self, numbers, final_norm=final_norm)
        keys = [*map(str, numbers), *[FINAL_NORM] * final_norm]
        notes = ()
        if self.config.rope_unsupported is not None:
            notes = (
                f"{self.config.rope_unsupported} is not supported: the block can only be used without the rotary "
                "embedding (boost.rope=False)",
            )
        return Selection(
            parts=tuple(self._part(key) for key in keys),
            constants={
                "layers": numbers,
                "layers_in_source": self.n_layers,
                "final_norm": final_norm,
                "config": self.config,
            },
            notes=notes,
        )

    def read(self, key: str, weight: str, dtype: np.dtype) -> np.ndarray:
        """A weight of a part, as it is stored: linear maps (in, out), q and k in half-split order."""
        if key == FINAL_NORM:
            return transposed(self.tensors.read(self.layout.final_norm), dtype)
        array = self.tensors.read(self.layout.names(int(key))[weight])
        if self.layout.interleaved and weight in ("q", "k"):
            array = to_half_split(array, self.config.heads if weight == "q" else self.config.kv_heads)
        return transposed(array, dtype)

    def _part(self, key: str) -> Part:
        return Part(
            key=key,
            shapes=shapes.llama_part(self.config, key),
            read=lambda weight, dtype: self.read(key, weight, dtype),
        )


def parse_layers(spec: str, n_layers: int) -> tuple[int, ...]:
    """Layer numbers from "31", "0,15,31", "-1" (counted from the end) or "all", in this order.

    Raises:
      UserError: for anything else, a layer out of range, or one that is named twice.
    """
    if spec.strip() == "all":
        return tuple(range(n_layers))
    valid = f"valid are 0 to {n_layers - 1}, -{n_layers} to -1 from the end, or all"
    layers = []
    for item in spec.split(","):
        if not re.fullmatch(r"-?\d+", item.strip()):
            raise UserError(f"--layers {spec!r}: {item.strip()!r} is not a layer number: {valid}")
        number = int(item)
        if not -n_layers <= number < n_layers:
            raise UserError(f"--layers {spec!r}: there is no layer {number}: {valid}")
        layer = number % n_layers
        if layer in layers:
            raise UserError(f"--layers {spec!r}: layer {layer} is named twice: {valid}")
        layers.append(layer)
    return tuple(layers)


def check(source: LlamaSource, layers: Sequence[int], *, final_norm: bool) -> None:
    """Raises one `UserError` with every problem of the layers to convert; see `check_tensors`."""
    tensors, layout = source.tensors, source.layout
    of_weights = shapes.llama_layer(source.config)
    wanted: dict[str, tuple[int, ...]] = {}
    unread: list[str] = []
    for layer in layers:
        # Stored as (out, in).
        of_layer = {name: of_weights[weight][::-1] for weight, name in layout.names(layer).items()}
        prefix = layout.prefix.format(layer=layer)
        unread += [
            name
            for name in sorted(tensors.names)
            if name.startswith(prefix) and name not in of_layer and not name.endswith(layout.buffers)
        ]
        wanted |= of_layer
    if final_norm:
        wanted[layout.final_norm] = (source.config.width,)
    check_tensors(
        tensors,
        wanted,
        unread,
        part="a LLaMA layer",
        whole="LLaMA layers as its configuration describes them",
        kind="LLaMA-family checkpoint",
    )


def transposed(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array.T` as a contiguous array of `dtype`, cast while it is copied."""
    out = np.empty(array.shape[::-1], dtype)
    out[...] = array.T
    return out


def to_half_split(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a (H*K, D) query or key map from interleaved to half-split rotary pairs.

    Within a head, rows (0, 1), (2, 3) ... K - 1 become rows (0, K/2), (1, K/2 + 1) ...: the same pairs rotate by the
    same angles, so attention scores are unchanged.
    """
    rows, D = array.shape
    return array.reshape(heads, rows // heads // 2, 2, D).swapaxes(1, 2).reshape(rows, D)

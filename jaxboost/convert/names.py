"""Which tensor of a checkpoint is which weight of a layer: one table per naming scheme, checked both ways."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

FINAL_NORM = "final_norm"
_MAX_LISTED, _MAX_CHARACTERS = 12, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One naming scheme of LLaMA checkpoints.

    Attributes:
      prefix: beginning of a layer's tensor names, with `{layer}` for its number.
      weights: our name of a weight -> the rest of the tensor's name.
      final_norm: name of the norm after the last layer.
      interleaved: whether the rows of q and k pair (0, 1), (2, 3) ... for the rotary embedding (Meta, GGUF) instead of
        (0, K/2), (1, K/2 + 1) ... (Hugging Face, and ours).
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

# A LlamaModel saved without its language-model head.
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


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape of a stored tensor, linear maps as (out, in), and what keeps it from being read (None: nothing)."""

    shape: tuple[int, ...]
    obstacle: str | None = None


class Tensors(Protocol):
    """Named weights of any model; nothing is read before `read`.

    Attributes:
      source: what the manifest records as the origin, without any path of this machine.
      source_format: "safetensors", "torch", "meta", "gguf", "onnx" or "hub".
      names: all tensor names.
    """

    source: str
    source_format: str
    names: Collection[str]

    def info(self, name: str) -> TensorInfo:
        """Describes tensor `name`."""

    def read(self, name: str) -> np.ndarray:
        """Reads tensor `name`, linear maps as (out, in), in the stored precision (quantised ones as float32)."""


class Reader(Tensors, Protocol):
    """What every source of LLaMA layers offers.

    Attributes:
      layout: the naming scheme.
      config: shape and constants of the layers.
      n_layers: layers in the source.
    """

    layout: Layout
    config: LlamaConfig
    n_layers: int


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Our name of each weight of a layer -> its shape in a block, linear maps as (in, out)."""
    D, F = config.width, config.mlp_width
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "attention_norm": (D,),
        "q": (D, query),
        "k": (D, key),
        "v": (D, key),
        "o": (query, D),
        "mlp_norm": (D,),
        "gate": (D, F),
        "up": (D, F),
        "down": (F, D),
    }


def check(reader: Reader, layers: Sequence[int], *, final_norm: bool) -> None:
    """Raises one `UserError` with everything that is missing, unread, misshapen or unreadable in the wanted layers."""
    shapes = weight_shapes(reader.config)
    wanted: dict[str, tuple[int, ...]] = {}
    unread: list[str] = []
    for layer in layers:
        of_layer = {name: shapes[weight][::-1] for weight, name in reader.layout.names(layer).items()}
        prefix = reader.layout.prefix.format(layer=layer)
        unread += [
            name
            for name in sorted(reader.names)
            if name.startswith(prefix) and name not in of_layer and not name.endswith(reader.layout.buffers)
        ]
        wanted |= of_layer
    if final_norm:
        wanted[reader.layout.final_norm] = (reader.config.width,)
    check_tensors(
        reader,
        wanted,
        unread,
        part="a LLaMA layer",
        whole="LLaMA layers as its configuration describes them",
        kind="LLaMA-family checkpoint",
    )


def check_tensors(
    tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], unread: Sequence[str], *, part: str, whole: str, kind: str
) -> None:
    """Raises one `UserError` with everything that is missing, unread, misshapen or unreadable.

    Args:
      wanted: name -> shape of every tensor that will be read.
      unread: tensors that should not be there.
      part, whole, kind: what is converted, in three phrases for the message.
    """
    problems = [f"missing: {name}" for name in wanted if name not in tensors.names]
    problems += [f"not part of {part}: {name}" for name in unread]
    for name, shape in wanted.items():
        if name in tensors.names:
            info = tensors.info(name)
            if info.obstacle:
                problems.append(f"{name} {info.obstacle}")
            elif info.shape != shape:
                problems.append(f"{name} has the shape {info.shape} instead of {shape}")
    if problems:
        raise UserError(
            f"{tensors.source} does not hold {whole}: {listed(problems, '; ')}. "
            f"Check that the download is complete and that it is a plain {kind}"
        )


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first of them, and how many more there are. Names come from files: they are cut and kept to one line."""
    shown = [re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", "?", item[:_MAX_CHARACTERS]) for item in items[:_MAX_LISTED]]
    more = [f"and {len(items) - _MAX_LISTED} more"] if len(items) > _MAX_LISTED else []
    return separator.join([*shown, *more])


def read_weight(reader: Reader, layer: int, weight: str, dtype: np.dtype) -> np.ndarray:
    """Reads one weight of `layer` as it is stored in a block: linear maps (in, out), q and k in half-split order."""
    array = reader.read(reader.layout.names(layer)[weight])
    if reader.layout.interleaved and weight in ("q", "k"):
        array = to_half_split(array, reader.config.heads if weight == "q" else reader.config.kv_heads)
    return transposed(array, dtype)


def read_final_norm(reader: Reader, dtype: np.dtype) -> np.ndarray:
    """Reads the (D,) norm after the last layer."""
    return transposed(reader.read(reader.layout.final_norm), dtype)


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

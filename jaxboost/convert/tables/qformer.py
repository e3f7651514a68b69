"""The Q-Former of a BLIP-2 checkpoint: what config.json says of it, and which tensor is which weight."""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.tables import llama_configs, shapes, vit, vit_configs
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.parts import (
    FINAL_NORM,
    NORM,
    QFORMER,
    Part,
    Selection,
    Shapes,
    check_tensors,
    check_whole,
)
from jaxboost.convert.tables.vit import VitSource
from jaxboost.errors import UserError

# Of Hugging Face's configuration class, for keys that config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
}
_QUERIES = 32
_PREFIX, _LAYER, _QUERY_TOKENS = "qformer.", "layers.", "query_tokens"
# The beginnings of our names -> those of the tensors, of the weights that are in no layer and of those of a layer.
_OUTER = {"norm": f"{_PREFIX}layernorm", "projection": "language_projection"}
_INNER = {
    "attention.q": "attention.attention.query",
    "attention.k": "attention.attention.key",
    "attention.v": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "cross.q": "crossattention.attention.query",
    "cross.k": "crossattention.attention.key",
    "cross.v": "crossattention.attention.value",
    "cross.out": "crossattention.output.dense",
    "cross.norm": "crossattention.output.LayerNorm",
    "mlp.up": "intermediate_query.dense",
    "mlp.down": "output_query.dense",
    "mlp.norm": "output_query.LayerNorm",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerSource:
    """The Q-Former in a checkpoint, with its queries and the linear map to the language model.

    Attributes:
      tensors: the checkpoint.
      arguments: of `models.qformer.QFormer`, those that the manifest records.
      encoder, block: the vision encoder and the language model of the same checkpoint.
    """

    kind = QFORMER
    tensors: HuggingFaceTensors
    arguments: Mapping[str, Any]
    encoder: VitSource
    block: LlamaSource

    @functools.cached_property
    def shapes(self) -> Shapes:
        """Shapes of the weights."""
        return shapes.qformer(self.arguments)

    def select(self, layers: str, *, final_norm: bool) -> Selection:
        """Checks the Q-Former, which is only converted whole, and returns what is converted.

        Raises:
          UserError: `layers` is not "all", or the checkpoint is not the Q-Former that its configuration describes.
        """
        check_whole(self.tensors.source, layers, final_norm=final_norm, what="Q-Former")
        wanted = {_name(weight): self._stored(weight) for weight in self.shapes}
        # The final norms of its two neighbours, see `norms`.
        wanted |= {
            name: (self.arguments["context_width"],) for names in self.encoder.names(NORM).values() for name in names
        }
        norm = shapes.llama_part(self.block.config, FINAL_NORM)
        wanted |= {self.block.layout.of_final_norm(weight): shape for weight, shape in norm.items()}
        read = [name for name in sorted(self.tensors.names) if name.startswith(_PREFIX) and name not in wanted]
        check_tensors(
            self.tensors,
            wanted,
            read,
            part="the Q-Former's queries, layers and projection",
            whole="a Q-Former as its configuration describes it",
            kind="BLIP-2 checkpoint with a language model",
        )
        part = Part(key=QFORMER, shapes=self.shapes, read=self._read)
        return Selection(parts=(part,), constants={"arguments": self.arguments}, notes=())

    def norms(self) -> dict[str, Callable[[np.dtype], dict[str, np.ndarray]]]:
        """What reads the final norms of the parts "encoder" and "block", by our names, in a precision."""
        encoder, block = self.encoder, self.block
        of_block = shapes.llama_part(block.config, FINAL_NORM)
        return {
            "encoder": lambda dtype: {
                name: vit.read_weight(encoder, NORM, name, dtype) for name in encoder.shapes[NORM]
            },
            "block": lambda dtype: {name: block.read(FINAL_NORM, name, dtype) for name in of_block},
        }

    def _stored(self, weight: str) -> tuple[int, ...]:
        shape = self.shapes[weight]
        if weight == "queries":
            return (1, *shape)
        return shape[::-1] if weight.endswith(".kernel") else shape

    def _read(self, weight: str, dtype: np.dtype) -> np.ndarray:
        array = self.tensors.read(_name(weight))
        array = array.T if weight.endswith(".kernel") else array.reshape(self.shapes[weight])
        return np.ascontiguousarray(array, dtype)


def qformer_of(tensors: HuggingFaceTensors) -> QFormerSource:
    """The Q-Former of a BLIP-2 in Hugging Face's layout.

    Raises:
      UserError: config.json describes a model that `models.qformer.QFormer` cannot be.
    """
    whole = tensors.settings
    section = whole.section("qformer_config")
    where = section.where
    if section.get("use_qformer_text_input"):
        raise UserError(
            f"{where}: this Q-Former reads texts ('use_qformer_text_input' is true), for retrieval without a language"
            " model: choose a BLIP-2 with OPT, such as Salesforce/blip2-opt-2.7b"
        )
    settings = Settings(_DEFAULTS | {key: value for key, value in section.values.items() if value is not None}, where)
    activation = settings.get("hidden_act")
    if activation not in tuple(vit_configs.ACTIVATIONS):
        raise UserError(
            f"{where}: the activation is {reprlib.repr(activation)}, not one of {', '.join(vit_configs.ACTIVATIONS)}:"
            " choose another checkpoint"
        )
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if width % heads:
        raise UserError(f"{where}: the width {width} is not a multiple of {heads} heads")
    encoder, block = vit_configs.encoder_of(tensors), llama_configs.of_hugging_face(tensors)
    arguments = {
        "queries": whole.integer("num_query_tokens", _QUERIES, limit=1 << 12),
        "width": width,
        "depth": settings.integer("num_hidden_layers", limit=MAX_LAYERS),
        "heads": heads,
        "mlp_width": settings.integer("intermediate_size"),
        "eps": settings.number("layer_norm_eps"),
        "activation": vit_configs.ACTIVATIONS[activation],
        "cross_every": settings.integer("cross_attention_frequency", limit=MAX_LAYERS),
        # The vision encoder's width: 'encoder_hidden_size' is not read by transformers either.
        "context_width": encoder.arguments["width"],
        "output_width": block.config.width,
    }
    return QFormerSource(tensors=tensors, arguments=arguments, encoder=encoder, block=block)


def _name(weight: str) -> str:
    """The tensor of a weight."""
    if weight == "queries":
        return _QUERY_TOKENS
    module, _, kind = weight.rpartition(".")
    ending = "bias" if kind == "bias" else "weight"
    if not module.startswith(_LAYER):
        return f"{_OUTER[module]}.{ending}"
    number, _, inner = module.removeprefix(_LAYER).partition(".")
    return f"{_PREFIX}encoder.layer.{number}.{_INNER[inner]}.{ending}"

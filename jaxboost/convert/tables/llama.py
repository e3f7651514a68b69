"""Decoder layers of LLMs in a checkpoint: which tensors hold them, checks of these tensors, and their values."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.convert.formats.tensors import Tensors
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.llama_names import GGUF as GGUF
from jaxboost.convert.tables.llama_names import META as META
from jaxboost.convert.tables.llama_names import Layout
from jaxboost.convert.tables.parts import FINAL_NORM, LLAMA, Part, Selection, check_tensors
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaSource:
    """Decoder layers in a checkpoint.

    Attributes:
      tensors: the checkpoint.
      layout: its naming scheme.
      config: shape and constants of the layers.
      n_layers: how many there are.
      sliding: numbers of the layers with the sliding window of `config`; the others have none.
      sliding_rotation: fields of `config` that differ for these layers: those of the rotary embedding of Gemma 3.
    """

    kind = LLAMA
    tensors: Tensors
    layout: Layout
    config: LlamaConfig
    n_layers: int
    sliding: frozenset[int] = frozenset()
    sliding_rotation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Tensors that hold several weights of the layer that is read.
    _held: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

    def select(self, layers: str, *, final_norm: bool) -> Selection:
        """Checks layers, as `parse_layers` takes them, and returns what is converted.

        Raises:
          UserError: the checkpoint does not hold them as its configuration describes them.
        """
        numbers = parse_layers(layers, self.n_layers)
        check(self, numbers, final_norm=final_norm)
        keys = [*map(str, numbers), *[FINAL_NORM] * final_norm]
        config, notes = self._config_of(numbers), ()
        if config.rope_unsupported is not None:
            notes = (
                f"{config.rope_unsupported} is not supported: the block can only be used without the rotary "
                "embedding (boost.rope=False)",
            )
        if not config.rotary:
            notes = (
                "the learned positions are left out: without those of a converted question the layers do not know the"
                " order of their tokens",
            )
        return Selection(
            parts=tuple(self._part(key) for key in keys),
            constants={
                "layers": numbers,
                "layers_in_source": self.n_layers,
                "final_norm": final_norm,
                "config": config,
            },
            notes=notes,
        )

    def read(self, key: str, weight: str, dtype: np.dtype) -> np.ndarray:
        """A weight of a part, as it is stored: linear maps (in, out), q and k in half-split order."""
        if key == FINAL_NORM:
            array, weight = self.tensors.read(self.layout.of_final_norm(weight)), f"final_norm_{weight}"
        else:
            array = self._array(int(key), weight)
        if self.layout.norm_offset and weight.endswith(("norm", "norm_scale")):
            array = np.asarray(array, np.float32) - np.float32(self.layout.norm_offset)
        if self.layout.interleaved and weight in ("q", "k"):
            array = to_half_split(array, self.config.heads if weight == "q" else self.config.kv_heads)
        return transposed(array, dtype)

    def _array(self, layer: int, weight: str) -> np.ndarray:
        """A weight as the checkpoint holds it, linear maps as (out, in)."""
        name = self.layout.names(layer)[weight]
        together = self.layout.tensors(layer)[name]
        if len(together) == 1:
            array = self.tensors.read(name)
            return array.T if self.layout.in_out else array
        if name not in self._held:
            # The tensors of one layer that hold several weights are read once.
            if not any(held in self.layout.tensors(layer) for held in self._held):
                self._held.clear()
            self._held[name] = self.tensors.read(name)
        array = self._held[name].T if self.layout.in_out else self._held[name]
        widths = [shapes.llama_layer(self.config)[each][-1] for each in together]
        start = sum(widths[: together.index(weight)])
        return array[start : start + widths[together.index(weight)]]

    def _config_of(self, layers: Sequence[int]) -> LlamaConfig:
        """The configuration that holds for all these layers; see `sliding`."""
        sliding = self.sliding.intersection(layers)
        if not sliding:
            return dataclasses.replace(self.config, window=None)
        own = self.sliding_rotation
        if sliding.issuperset(layers) or not own:
            return dataclasses.replace(self.config, **own)
        if own["rope_unsupported"]:
            mixed = f"{own['rope_unsupported']} of some of the layers (convert the others alone)"
            return dataclasses.replace(self.config, rope_factors=None, rope_unsupported=mixed)
        local = tuple(position for position, layer in enumerate(layers) if layer in sliding)
        rotation = dict(local_rope_base=own["rope_base"], local_rope_factors=own["rope_factors"])
        return dataclasses.replace(self.config, local_layers=local, **rotation)

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
        of_layer = {
            name: _stored([of_weights[each] for each in held], layout) for name, held in layout.tensors(layer).items()
        }
        prefix = layout.prefix.format(layer=layer)
        unread += [
            name
            for name in sorted(tensors.names)
            if name.startswith(prefix) and name not in of_layer and not name.endswith(layout.buffers)
        ]
        wanted |= of_layer
    if final_norm:
        of_norm = shapes.llama_part(source.config, FINAL_NORM)
        wanted |= {layout.of_final_norm(weight): shape for weight, shape in of_norm.items()}
    check_tensors(
        tensors,
        wanted,
        unread,
        part="a decoder layer",
        whole="decoder layers as its configuration describes them",
        kind="checkpoint of a known LLM family",
    )


def _stored(together: Sequence[tuple[int, ...]], layout: Layout) -> tuple[int, ...]:
    """The shape of a tensor that holds weights of these shapes (..., out)."""
    shape = (*together[0][:-1], sum(shape[-1] for shape in together))
    return shape if layout.in_out else shape[::-1]


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

"""GGUF files (llama.cpp), quantised or not."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxboost.convert import file_kinds, gguf_header, names, rope
from jaxboost.convert.names import TensorInfo
from jaxboost.convert.settings import MAX_LAYERS, Settings, layer_config
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField

_ROPE_FACTORS = "rope_freqs.weight"


class GgufReader:
    """One GGUF file of the architecture `llama`; see `names.Reader`."""

    source_format = "gguf"
    layout = names.GGUF

    def __init__(self, path: pathlib.Path, source: str):
        """Reads the metadata and maps the tensors.

        Raises:
          UserError: if the file is truncated, split, or of another architecture.
        """
        self.source = source
        self._path = path
        contents = _opened(path)
        self._tensors = {tensor.name: tensor for tensor in contents.tensors}
        self.names = self._tensors.keys()
        # Values of other fields (the tokenizer's) are many and unused.
        keys = [key for key in contents.fields if key.startswith(("general.", "llama.", "split."))]
        try:
            settings = Settings({key: _value(contents.fields[key]) for key in keys}, str(path))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} has damaged metadata: download it again") from error
        architecture = settings.get("general.architecture")
        if architecture != "llama":
            raise UserError(
                f"{path} is a {architecture!r:.60} checkpoint, not of the LLaMA family: choose another file"
            )
        if settings.count("split.count", 1, limit=1 << 16) > 1:
            raise UserError(f"{path} is one part of several: join them with `llama-gguf-split --merge` first")
        self.n_layers = settings.integer("llama.block_count", limit=MAX_LAYERS)
        self.config = self._config(settings)

    def info(self, name: str) -> TensorInfo:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        shape = tuple(reversed(tensor.shape.tolist()))
        try:
            # One row shows whether this type can be read, at no cost.
            dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError:
            return TensorInfo(shape, f"is quantised as {tensor.tensor_type.name}, which the gguf package cannot read")
        return TensorInfo(shape)

    def read(self, name: str) -> np.ndarray:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        # Not from the reader's map, which would keep all that was ever read in memory.
        raw = np.fromfile(self._path, np.uint8, count=tensor.n_bytes, offset=tensor.data_offset)
        data = raw.view(tensor.data.dtype).reshape(tensor.data.shape)
        # The unquantised kinds are cast later, while they are transposed.
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return data
        return dequantize(data, tensor.tensor_type)

    def _config(self, settings: Settings) -> LlamaConfig:
        width, heads = settings.integer("llama.embedding_length"), settings.integer("llama.attention.head_count")
        head_dim = settings.integer("llama.attention.key_length", max(1, width // heads))
        key = "llama.attention.value_length"
        if settings.integer(key, head_dim) != head_dim:
            raise UserError(f"{settings.where}: {key!r} is not the head width {head_dim}: not a LLaMA layer")
        rope_base = settings.number("llama.rope.freq_base", 10000.0)
        rotated = settings.integer("llama.rope.dimension_count", head_dim)
        if rotated != head_dim:
            turning = rope.partial(f"{rotated} of {head_dim}")
        elif _ROPE_FACTORS in self.names:
            factors = tuple(float(factor) for factor in self.read(_ROPE_FACTORS).reshape(-1))
            turning = {"rope_factors": factors}
        else:
            kind = settings.get("llama.rope.scaling.type")
            scaling = {
                "rope_type": None if kind == "none" else kind,
                "factor": settings.get("llama.rope.scaling.factor"),
            }
            turning = rope.fields(Settings(scaling, settings.where), head_dim=head_dim, rope_base=rope_base)
        return layer_config(
            settings.where,
            width=width,
            heads=heads,
            kv_heads=settings.integer("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            mlp_width=settings.integer("llama.feed_forward_length"),
            eps=settings.number("llama.attention.layer_norm_rms_epsilon"),
            rope_base=rope_base,
            **turning,
        )


def _value(field: "ReaderField") -> Any:
    """A field's value; a float32 such as 1e-5 as the number that was written, not with the digits of its rounding."""
    from gguf import GGUFValueType

    value = field.contents()
    return float(str(np.float32(value))) if field.types == [GGUFValueType.FLOAT32] else value


def _opened(path: pathlib.Path) -> "GGUFReader":
    from gguf import GGUFReader

    head = file_kinds.head_of(path)
    if file_kinds.kind_of(head) != file_kinds.GGUF:
        file_kinds.refuse_known(str(path), head)
        raise UserError(f"{path} is not a GGUF file, or its download is incomplete: download it again")
    broken = UserError(f"{path} is truncated or damaged, or of an unknown GGUF version: download it again")
    if not gguf_header.is_sound(path):
        raise broken
    try:
        return GGUFReader(path)
    except Exception as error:
        # A damaged file can raise any error in the package; nothing but reading the file happens here.
        raise broken from error

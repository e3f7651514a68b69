"""GGUF files (llama.cpp), quantized or not."""

import pathlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxboost.convert.formats import gguf_header, kinds
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.formats.tensors import TensorInfo
from jaxboost.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField


class GgufTensors:
    """The tensors of one GGUF file; see `tensors.Tensors`.

    Attributes:
      path: the file.
      architecture: the file's name of its kind of model, such as "llama".
      settings: the metadata under `general.`, `split.` and the architecture's name.
    """

    source_format = "gguf"

    def __init__(self, path: pathlib.Path, source: str):
        """Reads the metadata and maps the tensors.

        Args:
          path: the file.
          source: what the manifest records.

        Raises:
          UserError: the file is truncated, damaged, or one part of several.
        """
        self.source, self.path = source, path
        contents = _opened(path)
        self._tensors = {tensor.name: tensor for tensor in contents.tensors}
        try:
            architecture = _value(contents.fields["general.architecture"])
            # Values of other fields (the tokenizer's) are many and unused.
            wanted = ("general.", "split.", f"{architecture}.")
            fields = {key: _value(field) for key, field in contents.fields.items() if key.startswith(wanted)}
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} has damaged metadata: download it again") from error
        self.architecture, self.settings = architecture, Settings(fields, str(path))
        if self.settings.count("split.count", 1, limit=1 << 16) > 1:
            raise UserError(f"{path} is one part of several: join them with `llama-gguf-split --merge` first")

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        shape = tuple(reversed(tensor.shape.tolist()))
        try:
            # One row shows whether this type can be read, at no cost.
            dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError:
            return TensorInfo(shape, f"is quantized as {tensor.tensor_type.name}, which the gguf package cannot read")
        return TensorInfo(shape)

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        # Not from the reader's map, which would keep everything that was read in memory.
        raw = np.fromfile(self.path, np.uint8, count=tensor.n_bytes, offset=tensor.data_offset)
        data = raw.view(tensor.data.dtype).reshape(tensor.data.shape)
        # The unquantized kinds are cast later, while they are transposed.
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return data
        return dequantize(data, tensor.tensor_type)

    def read_rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of tensor `name` as float32, in this order; nothing else of it is read."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        # A quantized row is a whole number of blocks.
        return np.array(dequantize(np.stack([tensor.data[row] for row in rows]), tensor.tensor_type), np.float32)


def _value(field: "ReaderField") -> Any:
    """A field's value. A float32 such as 1e-5 becomes the nearest short decimal, without the digits of its rounding."""
    from gguf import GGUFValueType

    value = field.contents()
    return float(str(np.float32(value))) if field.types == [GGUFValueType.FLOAT32] else value


def _opened(path: pathlib.Path) -> "GGUFReader":
    from gguf import GGUFReader

    head = kinds.head_of(path)
    if kinds.kind_of(head) != kinds.GGUF:
        kinds.refuse_known(str(path), head)
        raise UserError(f"{path} is not a GGUF file, or its download is incomplete: download it again")
    broken = UserError(f"{path} is truncated or damaged, or of an unknown GGUF version: download it again")
    if not gguf_header.is_sound(path):
        raise broken
    try:
        return GGUFReader(path)
    except Exception as error:
        # A damaged file can raise any error in the package; nothing but reading the file happens here.
        raise broken from error

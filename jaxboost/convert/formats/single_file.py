"""A single file of weights, safetensors or PyTorch; training frameworks may have changed the names."""

import pathlib
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from jaxboost.convert.formats import kinds
from jaxboost.convert.formats.huggingface import LocalFolder, safetensors_in
from jaxboost.convert.formats.tensors import TensorInfo
from jaxboost.convert.formats.torch_file import TorchFile
from jaxboost.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# torch.compile, and FSDP's sharding and checkpointing, put these in the middle of names.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class FileTensors:
    """The weights of one file, by names without wrappers; see `tensors.Tensors`.

    Attributes:
      others: names of entries that are not tensors.
      entries: keys of the mappings in a PyTorch file, such as an optimizer's state.
    """

    def __init__(self, path: pathlib.Path, source: str, kind: str | None):
        """Reads the header of a safetensors file, or maps a PyTorch file.

        Args:
          path: the file.
          source: what the manifest records.
          kind: see `kinds.kind_of`; None: by the ending of the file's name.

        Raises:
          UserError: see `SafetensorsFile` and `TorchFile`.
        """
        self.source = source
        if kind == kinds.SAFETENSORS or (kind is None and path.suffix == ".safetensors"):
            file: Any = safetensors_in(LocalFolder(path.parent), path.name)
            self.source_format, self.others, self.entries = "safetensors", (), ()
        else:
            file = TorchFile(path, may_be_nested=True)
            self.source_format, self.others, self.entries = "torch", file.others, file.entries
        self._file = file
        self._stored = {_WRAPPERS.sub("", name): name for name in file.names}
        if len(self._stored) != len(file.names):
            raise UserError(f"{path} holds its weights twice, wrapped and not: save model.state_dict() alone")

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._stored.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        return self._file.info(self._stored[name])

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        return self._file.read(self._stored[name])

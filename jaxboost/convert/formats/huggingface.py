"""Folders in Hugging Face's layout: config.json and safetensors or PyTorch files, on disk or on the hub."""

import dataclasses
import functools
import pathlib
import reprlib
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from jaxboost.convert.formats.safetensors_file import SafetensorsFile
from jaxboost.convert.formats.settings import MAX_BYTES, Settings
from jaxboost.convert.formats.tensors import TensorInfo, listed
from jaxboost.convert.formats.torch_file import TorchFile
from jaxboost.convert.formats.torch_ranges import TorchRanges
from jaxboost.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileNames:
    """The names of the files of a layout.

    Attributes:
      config: the configuration.
      safetensors, torch: the weights, in one file.
    """

    config: str
    safetensors: str
    torch: str

    @property
    def weights(self) -> tuple[str, ...]:
        """The kinds of weights, the best first: a file, or the index of several."""
        return tuple(name for file in (self.safetensors, self.torch) for name in (file, f"{file}.index.json"))


FILES = FileNames(config="config.json", safetensors="model.safetensors", torch="pytorch_model.bin")
OPEN_CLIP_FILES = FileNames(
    config="open_clip_config.json",
    safetensors="open_clip_model.safetensors",
    torch="open_clip_pytorch_model.bin",
)
WEIGHT_FILES = FILES.weights


class Folder(Protocol):
    """Files of one checkpoint.

    Attributes:
      source: what the manifest records.
      source_format: "hub"; None: the format of the weight files.
      files: names of the files.
      local_path: the folder, None if it is not on this machine.
    """

    source: str
    source_format: str | None
    files: frozenset[str]
    local_path: pathlib.Path | None

    def where(self, name: str) -> str:
        """The file's name in messages."""
        ...

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        ...

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes [start, stop) of a file as a new uint8 array."""
        ...


def safetensors_in(folder: Folder, name: str) -> SafetensorsFile:
    """A safetensors file of a folder."""
    return SafetensorsFile(
        folder.where(name), folder.size(name), lambda start, stop: folder.read_range(name, start, stop)
    )


def weights_in(folder: Folder, name: str) -> SafetensorsFile | TorchFile | TorchRanges:
    """A file of weights of a folder, safetensors or, by its name, PyTorch's."""
    if name.endswith(".safetensors"):
        return safetensors_in(folder, name)
    if folder.local_path is not None:
        return TorchFile(folder.local_path / name)
    return TorchRanges(folder.where(name), folder.size(name), lambda start, stop: folder.read_range(name, start, stop))


class LocalFolder(Folder):
    """A folder on this machine; see `Folder`."""

    source_format = None

    def __init__(self, path: pathlib.Path):
        """Lists the files of `path`."""
        self.local_path = path
        self.source = path.resolve().name
        self.files = frozenset(entry.name for entry in path.iterdir() if entry.is_file())

    def where(self, name: str) -> str:
        """See `Folder`."""
        return str(self.local_path / name)

    def size(self, name: str) -> int:
        """See `Folder`."""
        return (self.local_path / name).stat().st_size

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """See `Folder`."""
        return np.fromfile(self.local_path / name, np.uint8, count=stop - start, offset=start)


class HuggingFaceTensors:
    """See `tensors.Tensors`. The header of a weight file is read when the first of its tensors is needed.

    Attributes:
      settings: the configuration.
    """

    def __init__(self, folder: Folder, file_names: FileNames = FILES):
        """Reads the configuration.

        Args:
          folder: with the files.
          file_names: their names.

        Raises:
          UserError: it is missing or broken; and later, when tensors are read, if their files are.
        """
        self._folder, self._file_names = folder, file_names
        self.source = folder.source
        if file_names.config not in folder.files:
            raise UserError(f"{folder.where(file_names.config)} is missing: it describes the layers")
        self.settings = self.read_settings(file_names.config)
        self._files: dict[str, SafetensorsFile | TorchFile | TorchRanges] = {}

    @property
    def source_format(self) -> str:
        """See `tensors.Tensors`."""
        is_torch = self._weights.startswith(self._file_names.torch)
        return self._folder.source_format or ("torch" if is_torch else "safetensors")

    @property
    def local_path(self) -> pathlib.Path | None:
        """The folder, None if it is not on this machine."""
        return self._folder.local_path

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._file_of.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        return self._file(name).info(name)

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        return self._file(name).read(name)

    def has(self, name: str) -> bool:
        """Whether the folder has a file."""
        return name in self._folder.files

    def read_settings(self, name: str) -> Settings:
        """A JSON file of the folder. Raises UserError if it is damaged."""
        if (size := self._folder.size(name)) > MAX_BYTES:
            raise UserError(f"{self._folder.where(name)} has more than {MAX_BYTES >> 20} MiB: download it again")
        return Settings.parse(self._folder.read_range(name, 0, size).tobytes(), self._folder.where(name))

    def read_rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of tensor `name`, in this order; nothing else of it is read."""
        return self._file(name).read_rows(name, rows)

    @functools.cached_property
    def _weights(self) -> str:
        """The first kind of weights that the folder has: a file, or the index of several."""
        folder, wanted = self._folder, self._file_names.weights
        found = next((name for name in wanted if name in folder.files), None)
        if found is None:
            raise UserError(f"{folder.source} has no weights: none of {', '.join(wanted)} is there")
        return found

    @functools.cached_property
    def _file_of(self) -> dict[str, str]:
        """Tensor name -> file."""
        folder, found = self._folder, self._weights
        if not found.endswith(".index.json"):
            return dict.fromkeys(self._open(found).names, found)
        file_of = self.read_settings(found).section("weight_map").values
        for name, file in file_of.items():
            if not isinstance(file, str) or file.startswith("/") or ".." in file.split("/"):
                raise UserError(
                    f"{folder.where(found)} says that {name:.100} is in {reprlib.repr(file)}, which is "
                    "not a file of the same folder: download it again"
                )
        absent = sorted(set(file_of.values()) - folder.files)
        if absent or not file_of:
            raise UserError(
                f"{folder.where(found)} names files that are missing: {listed(absent, limit=4)}: download them"
                if absent
                else f"{folder.where(found)} lists no tensors: download it again"
            )
        return dict(file_of)

    def _file(self, name: str) -> SafetensorsFile | TorchFile | TorchRanges:
        file = self._open(self._file_of[name])
        if name not in file.names:
            raise UserError(
                f"{self._folder.where(self._file_of[name])} does not hold {name!r}, though the index says so: "
                "download both again"
            )
        return file

    def _open(self, file_name: str) -> SafetensorsFile | TorchFile | TorchRanges:
        if file_name not in self._files:
            self._files[file_name] = weights_in(self._folder, file_name)
        return self._files[file_name]

"""Checkpoints in Hugging Face's layout: config.json and safetensors or PyTorch files, on disk or on the hub."""

import functools
import pathlib
import reprlib
from collections.abc import Collection, Iterable
from typing import Protocol

import numpy as np

from jaxboost.convert import encoder_layouts, names, rope, unmerged
from jaxboost.convert.names import TensorInfo
from jaxboost.convert.safetensors_file import SafetensorsFile
from jaxboost.convert.settings import MAX_BYTES, MAX_LAYERS, Settings, layer_config
from jaxboost.convert.torch_files import TorchFile
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

MODEL_TYPES = ("llama", "mistral")
_SAFETENSORS, _TORCH = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (_SAFETENSORS, f"{_SAFETENSORS}.index.json", _TORCH, f"{_TORCH}.index.json")


class Folder(Protocol):
    """Files of one checkpoint.

    Attributes:
      source: what the manifest records.
      source_format: "hub", or None where the weight files decide.
      files: names of the files.
      local_path: the folder, None if it is not on this machine.
    """

    source: str
    source_format: str | None
    files: Collection[str]
    local_path: pathlib.Path | None

    def where(self, name: str) -> str:
        """The file's name in messages."""

    def size(self, name: str) -> int:
        """Size of a file in bytes."""

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes [start, stop) of a file as a new uint8 array."""


class LocalFolder:
    """A folder on this machine; see `Folder`."""

    source_format = None

    def __init__(self, path: pathlib.Path):
        self.local_path = path
        self.source = path.resolve().name
        self.files = frozenset(entry.name for entry in path.iterdir() if entry.is_file())

    def where(self, name: str) -> str:
        return str(self.local_path / name)

    def size(self, name: str) -> int:
        return (self.local_path / name).stat().st_size

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.fromfile(self.local_path / name, np.uint8, count=stop - start, offset=start)


class HuggingFaceTensors:
    """See `names.Tensors`. The header of a weight file is read when the first of its tensors is asked for.

    Attributes:
      settings: config.json.
    """

    def __init__(self, folder: Folder):
        """Reads config.json.

        Raises:
          UserError: if it is missing or broken; and later, where tensors are asked for, if their files are.
        """
        self._folder = folder
        self.source = folder.source
        if "config.json" not in folder.files:
            raise UserError(f"{folder.where('config.json')} is missing: it says how the layers are built")
        self.settings = self._read_settings("config.json")
        self._files: dict[str, SafetensorsFile | TorchFile] = {}

    @property
    def source_format(self) -> str:
        is_torch = self._weights.startswith(_TORCH)
        return self._folder.source_format or ("torch" if is_torch else "safetensors")

    @property
    def names(self) -> Collection[str]:
        return self._file_of.keys()

    def info(self, name: str) -> TensorInfo:
        return self._file(name).info(name)

    def read(self, name: str) -> np.ndarray:
        return self._file(name).read(name)

    @functools.cached_property
    def _weights(self) -> str:
        """The first kind of weights that the folder has: a file, or the index of several."""
        folder = self._folder
        found = next((name for name in WEIGHT_FILES if name in folder.files), None)
        if found is None:
            raise UserError(f"{folder.source} has no weights: none of {', '.join(WEIGHT_FILES)} is there")
        if found.startswith(_TORCH) and folder.local_path is None:
            raise UserError(
                f"{folder.source} has no safetensors, only {found}, which cannot be fetched in parts: "
                "download the repository and pass its folder"
            )
        return found

    @functools.cached_property
    def _file_of(self) -> dict[str, str]:
        """Tensor name -> file."""
        folder, found = self._folder, self._weights
        if not found.endswith(".index.json"):
            return dict.fromkeys(self._open(found).names, found)
        file_of = self._read_settings(found).section("weight_map").values
        for name, file in file_of.items():
            if not isinstance(file, str) or file.startswith("/") or ".." in file.split("/"):
                raise UserError(
                    f"{folder.where(found)} says that {name:.100} is in {reprlib.repr(file)}, which is no file beside "
                    "it: download it again"
                )
        absent = sorted(set(file_of.values()) - folder.files)
        if absent or not file_of:
            raise UserError(
                f"{folder.where(found)} names files that are missing: {_listed(absent)}: download them"
                if absent
                else f"{folder.where(found)} lists no tensors: download it again"
            )
        return dict(file_of)

    def _read_settings(self, name: str) -> Settings:
        if (size := self._folder.size(name)) > MAX_BYTES:
            raise UserError(f"{self._folder.where(name)} has more than {MAX_BYTES >> 20} MiB: download it again")
        return Settings.parse(self._folder.read_range(name, 0, size).tobytes(), self._folder.where(name))

    def _file(self, name: str) -> SafetensorsFile | TorchFile:
        file = self._open(self._file_of[name])
        if name not in file.names:
            raise UserError(
                f"{self._folder.where(self._file_of[name])} does not hold {name!r}, though the index says so: "
                "download both again"
            )
        return file

    def _open(self, file_name: str) -> SafetensorsFile | TorchFile:
        if file_name not in self._files:
            folder = self._folder
            if file_name.endswith(".safetensors"):
                self._files[file_name] = SafetensorsFile(
                    folder.where(file_name),
                    folder.size(file_name),
                    lambda start, stop: folder.read_range(file_name, start, stop),
                )
            else:
                self._files[file_name] = TorchFile(folder.local_path / file_name)
        return self._files[file_name]


class HuggingFaceReader:
    """LLaMA layers in Hugging Face's layout; see `names.Reader`."""

    def __init__(self, tensors: HuggingFaceTensors):
        """Interprets config.json.

        Raises:
          UserError: if the model is not of the LLaMA family, or a file is missing or broken.
        """
        self.config, self.n_layers = parse_config(tensors.settings)
        self.source, self.source_format, self.names = tensors.source, tensors.source_format, tensors.names
        self.info, self.read = tensors.info, tensors.read
        unmerged.check(self.names, tensors.source)
        headless = names.HUGGING_FACE_HEADLESS
        self.layout = headless if headless.final_norm in self.names else names.HUGGING_FACE


def parse_config(settings: Settings) -> tuple[LlamaConfig, int]:
    """Shape of the layers and their number, from config.json with the defaults of Hugging Face's LlamaConfig.

    Raises:
      UserError: if the model is not of the LLaMA family, is quantised, or differs in its activation or rotary part.
    """
    model_type = settings.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{settings.where}: this is a {model_type!r} checkpoint, not of the LLaMA family: "
            f"choose one of the type {' or '.join(MODEL_TYPES)}, or as an encoder one of the type "
            + ", ".join(encoder_layouts.MODEL_TYPES)
        )
    activation = settings.get("hidden_act") or "silu"
    if activation != "silu":
        raise UserError(f"{settings.where}: the activation is {activation!r}, LLaMA layers have 'silu'")
    if settings.get("quantization_config"):
        method = settings.section("quantization_config").get("quant_method")
        raise UserError(f"{settings.where}: the weights are quantised ({method}): convert from the original model")

    # Since transformers 5 one section holds the base and the scaling; before, they were apart.
    scaling = (
        settings.section("rope_parameters") if settings.get("rope_parameters") else settings.section("rope_scaling")
    )
    rope_base = scaling.number("rope_theta", settings.number("rope_theta", 10000.0))
    rotated = [section.number("partial_rotary_factor", 1.0) for section in (settings, scaling)]
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    # The two families differ in this default alone; a null means one key/value head per head in both.
    absent_kv_heads = 8 if model_type == "mistral" and "num_key_value_heads" not in settings.values else heads
    head_dim = settings.integer("head_dim", max(1, width // heads))
    if min(rotated) != 1 or max(rotated) != 1:
        turning = rope.partial(f"a share of {min(rotated)}")
    else:
        turning = rope.fields(scaling, head_dim=head_dim, rope_base=rope_base)
    config = layer_config(
        settings.where,
        width=width,
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", absent_kv_heads),
        head_dim=head_dim,
        mlp_width=settings.integer("intermediate_size"),
        eps=settings.number("rms_norm_eps", 1e-6),
        rope_base=rope_base,
        **turning,
    )
    return config, settings.integer("num_hidden_layers", limit=MAX_LAYERS)


def _listed(items: Iterable[str], limit: int = 4) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")

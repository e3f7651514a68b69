"""PyTorch pickles (.bin, .pth), mapped instead of loaded, and Meta's folders of them. Only these readers need torch."""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from jaxboost.convert import names, rope
from jaxboost.convert.names import TensorInfo
from jaxboost.convert.settings import Settings, layer_config
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

if TYPE_CHECKING:
    import torch

_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
# What torch.load raises for a damaged zip file or pickle; a file that cannot be opened has failed before.
_BROKEN = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError)
_DTYPES = ("float32", "float16", "bfloat16")
# Where training scripts put a state dict that they save with more beside it.
_WRAPPERS = ("model", "state_dict")

# Model-parallel parts split a linear map along its outputs (0) or its inputs (1); every other tensor is in each part.
_SPLIT_AXES = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1}


class TorchFile:
    """Tensors of one pickled state dict."""

    def __init__(self, path: Path, *, may_be_wrapped: bool = False):
        """Maps the file.

        Args:
          may_be_wrapped: whether the state dict may be the entry "model" or "state_dict" of a larger mapping.

        Raises:
          UserError: if torch is not installed, or the file is truncated, of the old format, or holds more than tensors.
        """
        self._path, self._may_be_wrapped = path, may_be_wrapped
        self._infos = {name: _info(tensor) for name, tensor in _mapped(path, may_be_wrapped).items()}

    @property
    def names(self) -> Collection[str]:
        return self._infos.keys()

    def info(self, name: str) -> TensorInfo:
        return self._infos[name]

    def read(self, name: str) -> np.ndarray:
        # Mapped anew for each tensor: a lasting map would keep all that was ever read in memory.
        return _to_numpy(_mapped(self._path, self._may_be_wrapped)[name])


class MetaReader:
    """A folder of consolidated.00.pth, further model-parallel parts, and params.json; see `names.Reader`."""

    source_format = "meta"
    layout = names.META

    def __init__(self, folder: Path):
        """Maps the parts and reads params.json.

        Raises:
          UserError: see `TorchFile`; or parts are missing or differ; or params.json is missing or incomplete.
        """
        self.source = folder.resolve().name
        paths = sorted(folder.glob("consolidated.*.pth"))
        for number, path in enumerate(paths):
            if path.name != f"consolidated.{number:02d}.pth":
                raise UserError(f"{folder} has {path.name} but no consolidated.{number:02d}.pth: download all parts")
        self._parts = [TorchFile(path) for path in paths]
        self.names = self._parts[0].names
        for path, part in zip(paths, self._parts, strict=True):
            if part.names != self.names:
                raise UserError(f"{path} holds other tensors than {paths[0].name}: they are not parts of one model")
        settings_path = folder / "params.json"
        if not settings_path.is_file():
            raise UserError(f"{folder} has no params.json: download it from where {paths[0].name} came from")
        settings = Settings.parse(settings_path.read_bytes(), str(settings_path))
        self.n_layers = settings.integer("n_layers")
        self.config = self._config(settings)

    def info(self, name: str) -> TensorInfo:
        infos = [part.info(name) for part in self._parts]
        axis = _split_axis(name)
        if axis is None or len(infos[0].shape) != 2:
            return infos[0]
        shape = list(infos[0].shape)
        shape[axis] = sum(info.shape[axis] for info in infos)
        return TensorInfo(tuple(shape), infos[0].obstacle)

    def read(self, name: str) -> np.ndarray:
        axis = _split_axis(name)
        if axis is None or len(self._parts) == 1:
            return self._parts[0].read(name)
        return np.concatenate([part.read(name) for part in self._parts], axis=axis)

    def _config(self, settings: Settings) -> LlamaConfig:
        width, heads = settings.integer("dim"), settings.integer("n_heads")
        head_dim = max(1, width // heads)
        gate = self.layout.names(0)["gate"]
        if gate not in self.names:
            raise UserError(f"{self.source} has no tensor {gate!r}: it is not a LLaMA checkpoint, or is incomplete")
        rope_base = settings.number("rope_theta", 10000.0)
        factors = None
        if settings.get("use_scaled_rope"):
            # params.json does not say whether it is LLaMA 3.1's factor of 8 or 3.2's of 32; only the text models of
            # 3.2 are narrower than 4096.
            factors = rope.llama3_factors(
                head_dim=head_dim,
                rope_base=rope_base,
                factor=settings.number("rope_scaling_factor", 8.0 if width >= 4096 else 32.0),
                low_freq_factor=1.0,
                high_freq_factor=settings.number("rope_high_freq_factor", 4.0),
                original_context=8192.0,
            )
        return layer_config(
            settings.where,
            width=width,
            heads=heads,
            kv_heads=settings.integer("n_kv_heads", heads),
            head_dim=head_dim,
            mlp_width=self.info(gate).shape[0],
            eps=settings.number("norm_eps"),
            rope_base=rope_base,
            rope_factors=factors,
        )


def _mapped(path: Path, may_be_wrapped: bool) -> "dict[str, torch.Tensor]":
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            f"{path} is a PyTorch pickle and torch is not installed: run this with `uv run --extra convert`, "
            "or convert from a safetensors copy of the model"
        ) from error
    with path.open("rb") as file:
        magic = file.read(len(_ZIP_MAGIC))
    if magic[:1] == _PICKLE_MAGIC:
        raise UserError(
            f"{path} has PyTorch's old format, which cannot be read in parts: "
            "load it and save it again with torch.save of a current PyTorch, or convert from a safetensors copy"
        )
    if magic != _ZIP_MAGIC:
        raise UserError(f"{path} is not a PyTorch checkpoint, or its download is incomplete: download it again")
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, so that unpickling it could run code, or is damaged: "
            "save the model's state_dict() alone, or convert from a safetensors copy"
        ) from error
    except _BROKEN as error:
        raise UserError(f"{path} is truncated or damaged: download it again") from error
    if may_be_wrapped and isinstance(tensors, dict):
        tensors = next((tensors[key] for key in _WRAPPERS if isinstance(tensors.get(key), dict)), tensors)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} is not a plain mapping of names to tensors: save the model's state_dict() alone")
    return tensors


def _info(tensor: "torch.Tensor") -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    obstacle = None if dtype in _DTYPES else f"is stored as {dtype}: only {', '.join(_DTYPES)} are read"
    return TensorInfo(tuple(tensor.shape), obstacle)


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _split_axis(name: str) -> int | None:
    return _SPLIT_AXES.get(name.removesuffix(".weight").rpartition(".")[2])

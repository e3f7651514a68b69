"""PyTorch pickles (.bin, .pth, .ckpt), memory-mapped. Only this reader needs torch."""

import itertools
import pathlib
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from jaxboost.convert.formats import kinds
from jaxboost.convert.formats.tensors import TensorInfo, obstacle_of
from jaxboost.errors import UserError, missing_extra

if TYPE_CHECKING:
    import torch

    _Contents = tuple[dict[str, torch.Tensor], tuple[str, ...], tuple[str, ...]]

# Checkpoints of training scripts stay far below these limits.
_MAX_DEPTH, _MAX_OTHERS = 8, 1000
# Of tensors that are read through one map of a file, which keeps in memory what was read through it.
_MAX_MAPPED_BYTES = 1 << 25
# Files of the old format are read whole.
_MAX_OLD_BYTES = 1 << 30
# From here on `weights_only` holds for them too.
_SAFE_TORCH = (2, 6)
_RESAVE = "python -c \"import torch; torch.save(torch.load('{path}', weights_only=True), 'weights.pth')\""
_STATE_DICT = "save its weights alone, with torch.save(model.state_dict(), 'weights.pth')"


class TorchFile:
    """Tensors of one pickled state dict.

    Attributes:
      others: names of entries that are not tensors.
      entries: keys of the mappings inside the file's own.
    """

    def __init__(self, path: pathlib.Path, *, may_be_nested: bool = False):
        """Maps the file.

        Args:
          path: the file.
          may_be_nested: whether the state dict may be part of a training checkpoint with an optimizer, arguments and
            so on. The names of its tensors are then the keys that lead to them, joined by dots. Objects of unknown
            classes are left out; none of their code runs.

        Raises:
          UserError: torch is not installed, or the file is truncated, of the old format, or holds more than tensors.
        """
        self._path = path
        self._is_old = is_old = _check_format(path)
        self._unknown = None if not may_be_nested else [] if is_old else _unknown_classes(path)
        tensors, self.others, self.entries = _mapped(path, self._unknown, mmap=not is_old)
        self._held: dict[str, torch.Tensor] | None = tensors
        self._bytes = 0
        self._infos = {name: _info(tensor) for name, tensor in tensors.items()}

    @property
    def names(self) -> Collection[str]:
        """All tensor names."""
        return self._infos.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        return self._infos[name]

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        return _to_numpy(self._tensor(name))

    def read_rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of tensor `name`, in this order; nothing else of it is read."""
        return _to_numpy(self._tensor(name)[list(rows)])

    def _tensor(self, name: str) -> "torch.Tensor":
        if self._held is None:
            self._held, self._bytes = _mapped(self._path, self._unknown)[0], 0
        tensor = self._held[name]
        self._bytes += tensor.nbytes
        # A file of the old format cannot be mapped: it stays in memory.
        if self._bytes > _MAX_MAPPED_BYTES and not self._is_old:
            self._held = None
        return tensor


class _Unread:
    """Replaces an object of an unknown class; accepts any arguments and state."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapped(path: pathlib.Path, unknown: Sequence[str] | None, *, mmap: bool = True) -> "_Contents":
    """The tensors of a file by name, and `TorchFile`'s others and entries.

    Args:
      path: the file.
      unknown: classes whose objects are replaced by `_Unread`; None: the file must be a plain state dict.
    """
    import torch

    classes = [(_Unread, name) for name in unknown or ()]
    try:
        with torch.serialization.safe_globals(classes):
            contents = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, so that unpickling it could run code, or is damaged: {_STATE_DICT}, "
            "or convert from a safetensors copy"
        ) from error
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is: it is damaged, download it again") from error
    except Exception as error:
        # A damaged file can raise any error; nothing but reading the file happens here.
        raise UserError(f"{path} is truncated or damaged: download it again") from error
    if isinstance(contents, _Unread):
        raise UserError(f"{path} holds a whole model as an object, which only its own code can read: {_STATE_DICT}")
    if unknown is not None and isinstance(contents, Mapping):
        return _flattened(contents, path)
    if not isinstance(contents, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in contents.items()
    ):
        raise UserError(f"{path} is not a plain mapping of names to tensors: {_STATE_DICT}")
    return contents, (), ()


def _check_format(path: pathlib.Path) -> bool:
    """Whether torch.save wrote the file in its old format, and not in the current one.

    Raises:
      UserError: it is in neither, or too large for the old one; or torch is missing.
    """
    _import_torch(path)
    head = kinds.head_of(path)
    if kinds.is_old_torch(head) and path.stat().st_size <= _MAX_OLD_BYTES:
        _check_torch_version(path)
        return True
    fix = f"save it again with `{_RESAVE.format(path=path)}`, or convert from a safetensors copy"
    kinds.check_torch_head(str(path), head, fix)
    kinds.check_torch_archive(str(path))
    return False


def _import_torch(path: pathlib.Path) -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            f"{path} is a PyTorch pickle and torch is not installed: {missing_extra('convert')}, or convert from a"
            " safetensors copy of the model"
        ) from error


def _check_torch_version(path: pathlib.Path) -> None:
    """Raises UserError if a file of the old format could run code in this version of torch (CVE-2025-32434)."""
    import torch

    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _SAFE_TORCH:
        raise UserError(
            f"{path} has PyTorch's old format, which torch {torch.__version__} does not read safely: install torch"
            f" {'.'.join(map(str, _SAFE_TORCH))} or later, or convert from a safetensors copy"
        )


def _unknown_classes(path: pathlib.Path) -> list[str]:
    """Classes in a file that torch does not know as safe. Nothing is unpickled to find them."""
    import torch

    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        # A damaged file can raise any error; nothing but reading the file happens here.
        raise UserError(f"{path} is truncated or damaged: download it again") from error


def _flattened(contents: Mapping[Any, Any], path: pathlib.Path) -> "_Contents":
    import torch

    tensors: dict[str, torch.Tensor] = {}
    # A mapping can occur twice, or contain itself.
    seen = {id(contents)}

    def visit(mapping: Mapping[Any, Any], prefix: str, depth: int) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}" if isinstance(key, (str, int)) else None
            if name is None:
                continue
            if isinstance(value, torch.Tensor):
                if name in tensors:
                    raise UserError(f"{path} holds two tensors of the name {name:.200}: {_STATE_DICT}")
                tensors[name] = value
            elif isinstance(value, Mapping) and depth < _MAX_DEPTH and id(value) not in seen:
                seen.add(id(value))
                visit(value, f"{name}.", depth + 1)

    visit(contents, "", 1)
    starts = {name.partition(".")[0] for name in tensors} | tensors.keys()
    others = (str(key) for key, value in contents.items() if isinstance(key, (str, int)) and str(key) not in starts)
    entries = (str(key) for key, value in contents.items() if isinstance(value, Mapping))
    return tensors, tuple(sorted(itertools.islice(others, _MAX_OTHERS))), tuple(itertools.islice(entries, _MAX_OTHERS))


def _info(tensor: "torch.Tensor") -> TensorInfo:
    import torch

    shape = tuple(tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if obstacle := obstacle_of(dtype):
        return TensorInfo(shape, obstacle)
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return TensorInfo(shape, "is not a plain dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return TensorInfo(shape, "repeats its values, so that its file does not hold them all")
    return TensorInfo(shape)


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()

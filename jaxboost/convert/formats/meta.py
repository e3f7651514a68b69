"""Meta's folders: consolidated.NN.pth, in one or several model-parallel parts, and params.json."""

import pathlib

import numpy as np

from jaxboost.convert.formats.kinds import check_regular
from jaxboost.convert.formats.settings import MAX_BYTES, Settings
from jaxboost.convert.formats.tensors import TensorInfo
from jaxboost.convert.formats.torch_file import TorchFile
from jaxboost.errors import UserError

FIRST_PART = "consolidated.00.pth"

# Model-parallel parts split a linear map along its outputs (0) or its inputs (1); every other tensor is in each part.
_SPLIT_AXES = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1}


class MetaTensors:
    """The tensors of a folder, joined from its parts; see `tensors.Tensors`.

    Attributes:
      settings: params.json.
    """

    source_format = "meta"

    def __init__(self, folder: pathlib.Path):
        """Maps the parts and reads params.json.

        Raises:
          UserError: see `TorchFile`; or parts are missing or differ; or params.json is missing or broken.
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
        if not settings_path.exists():
            raise UserError(f"{folder} has no params.json: download it from where {paths[0].name} came from")
        check_regular(settings_path)
        with settings_path.open("rb") as file:
            self.settings = Settings.parse(file.read(MAX_BYTES), str(settings_path))

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        infos = [part.info(name) for part in self._parts]
        axis = _split_axis(name)
        if axis is None or len(infos[0].shape) != 2:
            return infos[0]
        shape = list(infos[0].shape)
        shape[axis] = sum(info.shape[axis] for info in infos)
        return TensorInfo(tuple(shape), infos[0].obstacle)

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
        axis = _split_axis(name)
        if axis is None or len(self._parts) == 1:
            return self._parts[0].read(name)
        return np.concatenate([part.read(name) for part in self._parts], axis=axis)


def _split_axis(name: str) -> int | None:
    return _SPLIT_AXES.get(name.removesuffix(".weight").rpartition(".")[2])

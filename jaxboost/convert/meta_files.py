"""Meta's folders of LLaMA: consolidated.NN.pth and params.json."""

import pathlib

import numpy as np

from jaxboost.convert import names, rope
from jaxboost.convert.file_kinds import check_regular
from jaxboost.convert.names import TensorInfo
from jaxboost.convert.settings import MAX_BYTES, MAX_LAYERS, Settings, layer_config
from jaxboost.convert.torch_files import TorchFile
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

# Model-parallel parts split a linear map along its outputs (0) or its inputs (1); every other tensor is in each part.
_SPLIT_AXES = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1}


class MetaReader:
    """A folder of consolidated.00.pth, further model-parallel parts, and params.json; see `names.Reader`."""

    source_format = "meta"
    layout = names.META

    def __init__(self, folder: pathlib.Path):
        """Precomputed the parts and reads params.json.

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
        if not settings_path.exists():
            raise UserError(f"{folder} has no params.json: download it from where {paths[0].name} came from")
        check_regular(settings_path)
        with settings_path.open("rb") as file:
            settings = Settings.parse(file.read(MAX_BYTES), str(settings_path))
        self.n_layers = settings.integer("n_layers", limit=MAX_LAYERS)
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


def _split_axis(name: str) -> int | None:
    return _SPLIT_AXES.get(name.removesuffix(".weight").rpartition(".")[2])

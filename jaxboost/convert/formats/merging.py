"""LoRA adapters (Hu et al. 2021), as the package peft saves them, merged into the weights of their model.

A linear map W (out, in) becomes W + s B A in float32, with A (r, in), B (out, r), and s = alpha / r, or alpha / sqrt(r)
for rank-stabilised LoRA (Kalajdzievski 2023).
"""

import os
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from jaxboost import io
from jaxboost.convert.formats import adapters, places
from jaxboost.convert.formats.huggingface import Folder, LocalFolder, weights_in
from jaxboost.convert.formats.settings import MAX_BYTES, Settings
from jaxboost.convert.formats.tensors import TensorInfo, Tensors
from jaxboost.errors import UserError

_PAIR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
# Beginnings of names that a checkpoint has or lacks, depending on the class that saved it.
_BASES = ("", "model.", "transformer.", "model.decoder.", "decoder.")
# Entry of the configuration -> what it would mean. All of them are absent, null, false or empty in a plain LoRA.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules that were trained too",
    "rank_pattern": "ranks that differ",
    "alpha_pattern": "alphas that differ",
    "lora_bias": "biases that were trained too",
    "target_parameters": "changes of parameters that are no linear map",
    "layer_replication": "layers that are used twice",
    "alora_invocation_tokens": "changes of some tokens alone",
}
# Starts of the matrices that leave the model's weights as they are. Others, such as PiSSA, change them.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal")


class MergedTensors:
    """The tensors of a checkpoint with an adapter merged into them; see `tensors.Tensors`."""

    def __init__(self, tensors: Tensors, path: str | os.PathLike[str], *, in_out: bool):
        """Reads the adapter's configuration, and checks that its tensors fit those of the model.

        Args:
          tensors: of the model.
          path: folder of the adapter, or id of its repository on the hub.
          in_out: whether the model's linear maps are stored as (in, out).

        Raises:
          UserError: there is no adapter, it is not a plain LoRA, or it belongs to another model.
        """
        folder = _folder(path)
        weights = _weights_of(folder)
        settings = _settings(folder)
        self._tensors, self._in_out, self._where = tensors, in_out, folder.where(weights)
        self._file = weights_in(folder, weights)
        self._scale, rank = _scale(settings)
        # Name of a tensor of the model -> beginning of the names of A and B.
        self._pairs = {self._target(name): name.rpartition(".lora_")[0] for name in sorted(self._file.names)}
        for target, pair in self._pairs.items():
            self._check_shapes(target, pair, rank)
        self.source = f"{tensors.source} + {folder.source}"

    @property
    def source_format(self) -> str:
        """See `tensors.Tensors`."""
        return self._tensors.source_format

    @property
    def names(self) -> Collection[str]:
        """All tensor names of the model."""
        return self._tensors.names

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        return self._tensors.info(name)

    def read(self, name: str) -> np.ndarray:
        """Tensor `name`; in float32 if the adapter changes it."""
        weight = self._tensors.read(name)
        if name not in self._pairs:
            return weight
        a, b = (np.asarray(self._file.read(f"{self._pairs[name]}.lora_{each}.weight"), np.float32) for each in "AB")
        change = np.float32(self._scale) * (b @ a)
        return np.asarray(weight, np.float32) + (change.T if self._in_out else change)

    def _target(self, name: str) -> str:
        """The tensor of the model that a tensor of the adapter changes."""
        match = _PAIR.fullmatch(name)
        if match is None:
            raise UserError(f"{self._where}: {name!r:.120} is no part of a plain LoRA: merge it with peft")
        full = f"{match[1]}.weight"
        cut = [full.removeprefix(base) for base in _BASES if full.startswith(base)]
        found = next((each for each in [*cut, *(base + full for base in _BASES)] if each in self.names), None)
        if found is None:
            raise UserError(
                f"{self._where}: it changes {match[1]:.120}, which {self._tensors.source} does not have: give the model"
                " that the adapter was trained with as --source"
            )
        return found

    def _check_shapes(self, target: str, pair: str, rank: int) -> None:
        names = [f"{pair}.lora_{each}.weight" for each in "AB"]
        if absent := [name for name in names if name not in self._file.names]:
            raise UserError(f"{self._where} has no {absent[0]!r:.120}: download it again")
        shape = self._tensors.info(target).shape
        rows, columns = shape[::-1] if self._in_out else shape
        infos = {name: self._file.info(name) for name in names}
        if problem := next((f"{name:.120} {info.obstacle}" for name, info in infos.items() if info.obstacle), None):
            raise UserError(f"{self._where}: {problem}: download it again, or save it in float32")
        found = [info.shape for info in infos.values()]
        if found != [(rank, columns), (rows, rank)]:
            raise UserError(
                f"{self._where}: A and B of {target:.120} have the shapes {found[0]} and {found[1]} instead of"
                f" {(rank, columns)} and {(rows, rank)}: give the model that the adapter was trained with as --source"
            )


def identity(path: str | os.PathLike[str]) -> str:
    """What tells an adapter from others: the SHA-256 of its files; of a hub repository, which is not read, its id.

    Raises:
      UserError: there is no adapter, or it cannot be read.
    """
    where = io.user_path(path)
    if not os.path.isdir(where):
        places.check_repository_id(os.fspath(path), "adapter")
        return os.fspath(path)
    try:
        files = (adapters.CONFIG, _weights_of(_folder(path)))
        return io.json_sha256([io.digest_of(where / name) for name in files])
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def _weights_of(folder: Folder) -> str:
    return next(name for name in adapters.WEIGHTS if name in folder.files)


def _folder(path: str | os.PathLike[str]) -> Folder:
    """The files of an adapter."""
    where = io.user_path(path)
    folder = LocalFolder(where) if os.path.isdir(where) else _repository(os.fspath(path))
    if adapters.CONFIG not in folder.files:
        raise UserError(f"--adapter {path}: it has no {adapters.CONFIG}: give an adapter that peft saved")
    if folder.files.isdisjoint(adapters.WEIGHTS):
        raise UserError(f"--adapter {path}: it has no {' and no '.join(adapters.WEIGHTS)}: give one that peft saved")
    return folder


def _repository(name: str) -> Folder:
    places.check_repository_id(name, "adapter")
    # Imported late, as in `sources`.
    from jaxboost.convert.formats.hub import HubFolder

    return HubFolder(name)


def _settings(folder: Folder) -> Settings:
    """The adapter's configuration. Raises UserError if it is not a plain LoRA."""
    where, size = folder.where(adapters.CONFIG), folder.size(adapters.CONFIG)
    if size > MAX_BYTES:
        raise UserError(f"{where} has more than {MAX_BYTES >> 20} MiB: download it again")
    settings = Settings.parse(folder.read_range(adapters.CONFIG, 0, size).tobytes(), where)
    problems: list[Any] = [f"{what} ({key!r})" for key, what in _REFUSED.items() if settings.get(key)]
    if settings.get("peft_type") != "LORA":
        problems.append(f"the type {settings.get('peft_type')!r:.40}")
    if settings.values.get("bias", "none") != "none":
        problems.append("biases that were trained too ('bias')")
    if settings.get("init_lora_weights") not in _PLAIN_STARTS:
        problems.append(f"the start {settings.get('init_lora_weights')!r:.40} ('init_lora_weights')")
    if problems:
        raise UserError(f"{where}: {problems[0]} is not supported, only a plain LoRA is: merge it with peft")
    return settings


def _scale(settings: Settings) -> tuple[float, int]:
    """The factor of B A, and the rank r."""
    rank = settings.integer("r", limit=1 << 16)
    alpha = settings.number("lora_alpha")
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank), rank

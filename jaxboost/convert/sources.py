"""Opens the source that the user names, in any format."""

import dataclasses
import logging
import os
import pathlib
import re

from jaxboost import io, packages
from jaxboost.convert.formats import adapters, kinds, meta, places, single_file
from jaxboost.convert.formats.gguf_file import GgufTensors
from jaxboost.convert.formats.huggingface import (
    FILES,
    OPEN_CLIP_FILES,
    WEIGHT_FILES,
    Folder,
    HuggingFaceTensors,
    LocalFolder,
)
from jaxboost.convert.formats.merging import MergedTensors
from jaxboost.convert.formats.settings import MAX_BYTES, Settings
from jaxboost.convert.formats.single_file import FileTensors
from jaxboost.convert.formats.tensors import Tensors
from jaxboost.convert.manifests import MANIFEST
from jaxboost.convert.tables import (
    blip2,
    llama_configs,
    llama_gguf,
    preprocessing,
    vit_configs,
    vit_onnx,
    vit_open_clip,
    vit_timm,
    whole,
)
from jaxboost.convert.tables.hints import Hints
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.qformer import QFormerSource
from jaxboost.convert.tables.vit import VitSource
from jaxboost.convert.tables.vit_names import OPEN_CLIP
from jaxboost.convert.tables.whole import WholeSource
from jaxboost.errors import UserError

Source = LlamaSource | VitSource | WholeSource | QFormerSource

_PACKAGE = "package:"

logger = logging.getLogger(__name__)


def open_source(source: str, hints: Hints | None = None, part: str | None = None) -> Source:
    """Opens a source of weights; tensors are read later, one by one.

    Args:
      source: a folder in Hugging Face's, Meta's, timm's or OpenCLIP's layout, a GGUF or ONNX file, `package:NAME` for
        such a file that an installed Python package carries, a file of weights in timm's or OpenCLIP's names
        (safetensors or PyTorch), or the id of a repository on the Hugging Face hub (owner/name[@revision]).
      hints: what the user states about a vision encoder in timm's or OpenCLIP's names.
      part: a key of `blip2.PARTS`, which a BLIP-2 needs. Other sources are what they are.

    Raises:
      UserError: there is no such source; it is neither an LLM of a known family nor a vision encoder that one of
        `models` can be; or a file is missing or broken.
    """
    hints = hints or Hints()
    hints.check()
    try:
        found = _opened(source, hints, part)
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    takes_hints = (*vit_timm.LAYOUTS, OPEN_CLIP)
    if not isinstance(found, WholeSource) and not (isinstance(found, VitSource) and found.layout in takes_hints):
        hints.check_unused(source)
    return found


def merged(source: Source, adapter: str | os.PathLike[str]) -> LlamaSource:
    """The same LLM with a LoRA adapter (a folder, or a hub id) merged into its weights; see `merging.MergedTensors`.

    Raises:
      UserError: the source is not an LLM in Hugging Face's layout, or the adapter is not a plain LoRA of it.
    """
    if not isinstance(source, LlamaSource) or not isinstance(source.tensors, HuggingFaceTensors):
        raise UserError(
            f"--adapter {adapter}: {source.tensors.source} is not an LLM in Hugging Face's layout: leave --adapter out"
        )
    try:
        tensors = MergedTensors(source.tensors, adapter, in_out=source.layout.in_out)
    except OSError as error:
        raise UserError(f"{error.filename or adapter} cannot be read: {error.strerror or error}") from error
    return dataclasses.replace(source, tensors=tensors)


def _opened(source: str, hints: Hints, part: str | None) -> Source:
    if source.startswith(_PACKAGE):
        path = _file_in_package(source.removeprefix(_PACKAGE))
        return _open_file(path, f"{source}/{path.name}", hints)
    path = io.user_path(source)
    if source and os.path.isdir(path):
        return _open_folder(path, hints, part)
    if source and os.path.exists(path):
        return _open_file(path, path.name, hints)
    places.check_repository_id(source, "source", f", nor {_PACKAGE}NAME")
    # Imported late: the hub's package takes a second to import, and most sources do not need it.
    from jaxboost.convert.formats.hub import HubFolder

    return _in_hugging_face_layout(HubFolder(source), source, hints, part)


def _open_file(path: pathlib.Path, source: str, hints: Hints) -> Source:
    """Opens a file by its first bytes; if they do not show its kind, by its name."""
    if path.name in adapters.WEIGHTS or path.name == adapters.CONFIG:
        return _open_folder(path.parent, hints)
    head = kinds.head_of(path)
    kind = kinds.kind_of(head)
    if kind == kinds.GGUF:
        return llama_gguf.of_gguf(GgufTensors(path, source))
    if kind is not None:
        return _encoder_in_file(path, source, hints, kind)
    kinds.refuse_known(str(path), head)
    if path.suffix == ".gguf":
        return llama_gguf.of_gguf(GgufTensors(path, source))
    if path.suffix == ".onnx":
        return vit_onnx.encoder_of(path, source)
    kinds.refuse_by_name(path)
    if path.suffix in single_file.SUFFIXES:
        return _encoder_in_file(path, source, hints, None)
    if path.name.startswith("sha256-"):
        raise UserError(
            f"{path} is a blob of Ollama that holds no model, but its settings, template or licence: the model's is "
            "the one that `ollama show --modelfile NAME` names after FROM"
        )
    raise UserError(
        f"{path} is a file: pass the folder that holds it, or a .gguf file, a .onnx file, or an encoder of timm as "
        + ", ".join(single_file.SUFFIXES)
    )


def _encoder_in_file(path: pathlib.Path, source: str, hints: Hints, kind: str | None) -> VitSource | WholeSource:
    """The vision encoder in a file of weights; `kind`: see `FileTensors`."""
    tensors = FileTensors(path, source, kind)
    if vit_open_clip.is_native(tensors.names):
        return vit_open_clip.encoder_of_file(tensors, str(path), hints)
    return _in_timms_names(tensors, Settings({}, str(path)), str(path), hints)


def _open_folder(path: pathlib.Path, hints: Hints, part: str | None = None) -> Source:
    folder = LocalFolder(path)
    known = not folder.files.isdisjoint(WEIGHT_FILES) or OPEN_CLIP_FILES.config in folder.files
    if not known and not adapters.is_alone(folder.files, WEIGHT_FILES):
        if meta.FIRST_PART in folder.files:
            return llama_configs.of_meta(meta.MetaTensors(path))
        _refuse_folder(path, folder)
    return _in_hugging_face_layout(folder, str(path), hints, part)


def _refuse_folder(path: pathlib.Path, folder: LocalFolder) -> None:
    """Raises UserError for a folder without WEIGHT_FILES, unless config.json is there and no other weights are."""
    if MANIFEST in folder.files:
        raise UserError(f"{path} is converted already: name it in the config, or pass the source that it was made from")
    for kind in (".gguf", ".onnx"):
        if found := sorted(name for name in folder.files if name.endswith(kind)):
            raise UserError(f"{path} holds {kind[1:].upper()} files: pass the file itself, such as {path / found[0]}")
    weights = sorted(name for name in folder.files if name.endswith(single_file.SUFFIXES))
    if found := [name for name in weights if name in OPEN_CLIP_FILES.weights]:
        raise UserError(
            f"{path} holds {found[0]} but no {OPEN_CLIP_FILES.config}, which describes the image tower: download it "
            f"too, or pass {path / found[0]} with --activation"
        )
    shards = [name for name in weights if re.search(r"-\d+-of-\d+\.", name)]
    if shards:
        raise UserError(
            f"{path} holds {shards[0]} but none of {', '.join(WEIGHT_FILES[1::2])}, which says which shard holds which "
            "tensor: download it too"
        )
    if weights:
        raise UserError(
            f"{path} holds {weights[0]} but none of {', '.join(WEIGHT_FILES)}: if it is a checkpoint in "
            f"Hugging Face's layout, rename it to one of these; if it is a ViT in timm's names, pass "
            f"{path / weights[0]}"
        )
    for name in sorted(folder.files):
        kinds.refuse_by_name(path / name)
    if "config.json" not in folder.files:
        raise UserError(
            f"{path} holds no checkpoint: neither config.json with {WEIGHT_FILES[0]} (or its like), "
            f"nor {meta.FIRST_PART} with params.json"
        )


def _in_hugging_face_layout(folder: Folder, where: str, hints: Hints, part: str | None) -> Source:
    if adapters.is_alone(folder.files, WEIGHT_FILES):
        text = b""
        if adapters.CONFIG in folder.files:
            size = min(folder.size(adapters.CONFIG), MAX_BYTES)
            text = folder.read_range(adapters.CONFIG, 0, size).tobytes()
        adapters.refuse_folder(where, text)
    if OPEN_CLIP_FILES.config in folder.files and _is_open_clip(folder):
        tensors = HuggingFaceTensors(folder, OPEN_CLIP_FILES)
        pixels = preprocessing.of_timm(tensors.settings)
        return dataclasses.replace(vit_open_clip.encoder_of_folder(tensors, hints), pixels=pixels)
    tensors = HuggingFaceTensors(folder)
    if blip2.is_blip2(tensors.settings):
        return blip2.part_of(tensors, part)
    if vit_configs.is_encoder(tensors.settings):
        found, pixels = vit_configs.encoder_of(tensors), None
        if tensors.has(preprocessing.FILE):
            try:
                pixels = preprocessing.of_transformers(tensors.read_settings(preprocessing.FILE))
            except UserError as error:
                # The weights do not depend on it.
                logger.warning("the pixels of the encoder's training are not recorded: %s", error)
        return dataclasses.replace(found, pixels=pixels)
    if vit_timm.is_timm(tensors.settings):
        found = _in_timms_names(tensors, tensors.settings, tensors.source, hints)
        return dataclasses.replace(found, pixels=preprocessing.of_timm(tensors.settings))
    return llama_configs.of_hugging_face(tensors)


def _in_timms_names(tensors: Tensors, settings: Settings, where: str, hints: Hints) -> VitSource | WholeSource:
    """The encoder in a checkpoint in timm's names; `settings` is config.json, empty for a single file of weights."""
    if family := whole.family_of(tensors, settings, where, hints.entry):
        return whole.encoder_of(tensors, family, settings, where, hints)
    return vit_timm.encoder_of(tensors, settings, where, hints)


def _is_open_clip(folder: Folder) -> bool:
    """Whether OpenCLIP's files are read, in a folder that has its configuration.

    They are if they are alone, or if the copy beside them is timm's, whose configuration says less. From the hub, a
    copy in safetensors comes before one in .bin files, as when these were not read there.
    """
    own, others = OPEN_CLIP_FILES.weights, WEIGHT_FILES
    if folder.files.isdisjoint(others):
        return True
    if folder.local_path is None and not folder.files.isdisjoint((*own[:2], *others[:2])):
        own, others = own[:2], others[:2]
    if folder.files.isdisjoint(own):
        return False
    if FILES.config not in folder.files or folder.files.isdisjoint(others):
        return True
    return vit_timm.is_timm(HuggingFaceTensors(folder).settings)


def _file_in_package(package: str) -> pathlib.Path:
    if package in packages.DIVIDED:
        return packages.joined_file(package)
    # As pip and as Python name it.
    folder = packages.folder_of(package.replace("-", "_"))
    for suffixes in ((".gguf", ".onnx"), single_file.SUFFIXES):
        found = sorted(path for path in folder.rglob("*") if path.suffix in suffixes)
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"the Python package {package!r} carries {len(found)} files of weights instead of one: pass the file,"
                f" such as {found[0]}"
            )
    raise UserError(
        f"the Python package {package!r} carries no GGUF or ONNX file and no other weights"
        f" ({', '.join(single_file.SUFFIXES)}): pass a file"
    )

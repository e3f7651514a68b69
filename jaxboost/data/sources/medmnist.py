"""The 18 MedMNIST data sets in every published size: read from the data root, or downloaded, and verified.

MedMNIST v2 and MedMNIST+: Yang et al., Scientific Data 10:41 (2023). Names, addresses, MD5 sums, tasks and licences
come from the installed package `medmnist`.
"""

import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pooch

from jaxboost.data.dataset import SPLITS, Dataset, DatasetInfo, check_size, data_root, make_split
from jaxboost.data.readers import npz
from jaxboost.errors import UserError
from jaxboost.io import digest_of, irregular, replacing

logger = logging.getLogger(__name__)

_BASE_SIZE = 28
_UNPACKED = "unpacked"  # folder of the unpacked arrays of large archives, and of notes about verified files
_DOWNLOAD_CHUNK_BYTES = 1 << 20


@functools.cache
def medmnist_info() -> Mapping[str, Mapping[str, Any]]:
    """The table `medmnist.info.INFO`: flag -> address, MD5, task, labels, channels, samples, licence.

    Only this file is executed: importing the package would import torch if it is installed, and print a line otherwise.
    """
    package = importlib.util.find_spec("medmnist")
    path = pathlib.Path(package.submodule_search_locations[0]) / "info.py"
    spec = importlib.util.spec_from_file_location("_medmnist_info", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.INFO


def names() -> tuple[str, ...]:
    """The names of the 18 data sets."""
    return tuple(medmnist_info())


def describe(name: str, size: int, *, root: str = "") -> DatasetInfo:
    """Describes a data set, without a file of `root`. Raises UserError if it is not published in that size."""
    entry = medmnist_info()[name]
    check_size(name, size, sizes(entry))
    return DatasetInfo(
        name=name,
        task=entry["task"],
        classes=tuple(entry["label"][key] for key in sorted(entry["label"], key=int)),
        channels=entry["n_channels"],
        ndim=3 if name.endswith("3d") else 2,
        size=size,
        n_samples=dict(entry["n_samples"]),
        license=entry["license"],
    )


def load(name: str, *, size: int, root: str) -> Dataset:
    """Loads the official file `{name}.npz` (28 pixels) or `{name}_{size}.npz` from the data root.

    A missing file is downloaded. The MD5 sum of a small file is verified every time, that of a large file once, and
    again when its size or modification time has changed. Images of a large split are memory-mapped from a copy that is
    unpacked on first use, see `npz.open_npz`. Copies and notes about verified files are in `unpacked/{stem}` of the
    data root, or in the user's cache folder if the data root is read-only.

    Raises:
      UserError: the size is not published; or the file is altered, or cannot be downloaded, read or unpacked.
    """
    info = describe(name, size)
    entry, suffix = medmnist_info()[name], suffix_of(size)
    path, md5 = data_root(root) / f"{name}{suffix}.npz", entry[f"MD5{suffix}"]
    folders = _folders(path)
    _require(path, url=entry[f"url{suffix}"], md5=md5, folders=folders)
    members = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    arrays = npz.open_npz(path, members, md5=md5, folders=folders)
    splits = {
        split: make_split(info, split, arrays[f"{split}_images"], arrays[f"{split}_labels"], where=str(path))
        for split in SPLITS
    }
    return Dataset(info=info, splits=splits, baselines={})


def suffix_of(size: int) -> str:
    """The end of the name of a file at `size` pixels: "" at 28, otherwise such as "_64"."""
    return "" if size == _BASE_SIZE else f"_{size}"


def sizes(entry: Mapping[str, Any]) -> list[int]:
    """The published sizes of a data set, ascending; `entry` is its row in `medmnist_info`."""
    return [_BASE_SIZE, *sorted(int(key.removeprefix("url_")) for key in entry if key.startswith("url_"))]


def _folders(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The folders for an archive's copies and notes, the preferred one first; in the cache, one for each data root."""
    root = hashlib.sha256(str(path.parent.resolve()).encode()).hexdigest()[:12]
    return path.parent / _UNPACKED / path.stem, pooch.os_cache("jaxboost") / _UNPACKED / root / path.stem


def _require(path: pathlib.Path, *, url: str, md5: str, folders: Sequence[pathlib.Path]) -> None:
    """Downloads `path` if it is missing, and verifies its MD5 sum."""
    # A folder is reported below, by the error from opening it.
    if (kind := irregular(path)) and not os.path.isdir(path):
        raise UserError(f"{path}: cannot read the file: it is {kind}, not a regular file: delete it and run again")
    try:
        if _is_large(path):
            if npz.is_noted(path, folders, md5):
                return
            logger.info("checking the MD5 sum of %s", path)
        # Before the sum is computed: a file that changes meanwhile then does not match the note.
        content = npz.make_note(path, md5)
        found = digest_of(path, "md5")
    except FileNotFoundError:
        _download(path, url=url, md5=md5, folders=folders)
        return
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from error
    if found != md5:
        raise UserError(
            f"{path}: altered or truncated (MD5 {found}, expected {md5}): "
            "delete it and run again, it will be downloaded"
        )
    _note(path, folders, content)


def _is_large(path: pathlib.Path) -> bool:
    return path.stat().st_size >= npz.LARGE_BYTES


def _note(path: pathlib.Path, folders: Sequence[pathlib.Path], content: str) -> None:
    """Notes that a large file was verified; a small one is verified every time."""
    try:
        if _is_large(path):
            npz.write_note(path, folders, content)
    except OSError as error:
        logger.warning(
            "%s: its MD5 sum will be checked at every start, because the result cannot be saved: %s",
            path,
            error.strerror,
        )


def _download(path: pathlib.Path, *, url: str, md5: str, folders: Sequence[pathlib.Path]) -> None:
    by_hand = f"or put that file at {path} yourself (another folder: data.root or MEDMNIST_ROOT)"
    logger.info("downloading %s to %s", url, path)
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=_DOWNLOAD_CHUNK_BYTES)
    try:
        with replacing(path) as temporary:
            download(url, str(temporary), None)
            found = digest_of(temporary, "md5")
            if found != md5:
                raise UserError(
                    f"{url}: the downloaded file is altered or truncated (MD5 {found}, expected {md5}): "
                    f"run again, {by_hand}"
                )
            content = npz.make_note(temporary, md5)
    # Errors of the HTTP client are OSErrors too.
    except OSError as error:
        raise UserError(f"{path}: not found, and {url} cannot be downloaded: {error}: run again, {by_hand}") from error
    _note(path, folders, content)

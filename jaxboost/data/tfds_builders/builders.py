"""The builders, which read through `jaxboost.data.sources`. This module needs the package tensorflow-datasets."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.data.sources import lidc, medmnist
from jaxboost.data.sources.nodules import EDGE_MM
from jaxboost.errors import UserError, nearest
from jaxboost.io import user_path
from jaxboost.tasks import TASKS

# Random access, and written without TensorFlow.
_FILE_FORMAT = "array_record"
_TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}

_MEDMNIST = """\
MedMNIST v2: 12 data sets of 2-D and 6 of 3-D biomedical images, for classification, in small standard sizes. Splits are
the official ones, and examples are in the official order."""
_MEDMNIST_CITATION = """\
@article{medmnistv2,
  title = {{MedMNIST} v2 -- A large-scale lightweight benchmark for {2D} and {3D} biomedical image classification},
  author = {Yang, Jiancheng and Shi, Rui and Wei, Donglai and Liu, Zequan and Zhao, Lin and Ke, Bilian and
            Pfister, Hanspeter and Ni, Bingbing},
  journal = {Scientific Data},
  volume = {10},
  pages = {41},
  year = {2023},
  doi = {10.1038/s41597-022-01721-8}
}"""
_LIDC = """\
Lung nodules of LIDC-IDRI as binary shapes (0 or 255) of 28^3 voxels of 1 mm, made from the outlines of four
radiologists: the pixels that at least half of them marked. The label is their mean opinion, malignant (above 3 of 5) or
benign (below 3), not a biopsy's; nodules in between are left out. 70 % / 10 % / 20 % of the patients train, validate
and test; no patient is in two splits."""
_LIDC_CITATION = """\
@article{lidc,
  title = {The {Lung Image Database Consortium} ({LIDC}) and {Image Database Resource Initiative} ({IDRI})},
  author = {Armato, Samuel G. and others},
  journal = {Medical Physics},
  volume = {38},
  number = {2},
  pages = {915--931},
  year = {2011},
  doi = {10.1118/1.3528204}
}
@misc{lidcdata,
  title = {Data from {LIDC-IDRI}},
  author = {Armato, Samuel G. and others},
  publisher = {The Cancer Imaging Archive},
  doi = {10.7937/K9/TCIA.2015.LO9QL9SX}
}"""


_Examples = Mapping[str, Iterator[tuple[int, dict[str, Any]]]]


@dataclasses.dataclass(eq=False)
class MedMNISTConfig(tfds.core.BuilderConfig):
    """A MedMNIST data set, `flag`, at `size` pixels a side."""

    flag: str = ""
    size: int = 0


def _configs() -> list[MedMNISTConfig]:
    return [
        # Named as the files are.
        MedMNISTConfig(name=f"{flag}{medmnist.suffix_of(size)}", flag=flag, size=size, description=entry["description"])
        for flag, entry in medmnist.medmnist_info().items()
        for size in medmnist.sizes(entry)
    ]


class _OurBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of a data set that `jaxboost.data.sources` loads.

    Its features are `image` or, for volumes, `volume`; `label`, the number of a class, or several for a multi-label
    task; and `patient`, if the patients are known. `root` is the folder of the files, see `dataset.data_root`.
    """

    def __init__(self, *, root: str = "", file_format: str = _FILE_FORMAT, **kwargs: Any):
        self._root = root
        super().__init__(file_format=file_format, **kwargs)

    def _described(
        self, info: DatasetInfo, *, description: str, homepage: str, citation: str, patients: bool = False
    ) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=_features(info, patients=patients),
            supervised_keys=(_image_name(info), "label"),
            homepage=homepage,
            citation=citation,
            license=info.license,
            # Official results are listed in the official order.
            disable_shuffling=True,
        )

    def _generated(self, dataset: Dataset) -> _Examples:
        return {
            _TFDS_SPLITS[name]: self._generate_examples(dataset.info, split) for name, split in dataset.splits.items()
        }

    def _generate_examples(self, info: DatasetInfo, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in range(len(split)):
            image, labels = split.images[row], split.labels[row]
            # TFDS would encode an array with TensorFlow.
            picture = Image.fromarray(image[..., 0] if info.channels == 1 else image) if info.ndim == 2 else image
            label = np.flatnonzero(labels).tolist() if TASKS[info.task].multi_label else int(labels[0])
            example = {_image_name(info): picture, "label": label}
            yield row, example if split.groups is None else {**example, "patient": str(split.groups[row])}


class MedMNIST(_OurBuilder):
    """A config for each of the 18 flags in each published size: `breastmnist` (28 pixels), `breastmnist_64` ..."""

    name = "medmnist"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = _configs()

    def _info(self) -> tfds.core.DatasetInfo:
        info = medmnist.describe(self.builder_config.flag, self.builder_config.size)
        return self._described(
            info,
            description=_MEDMNIST,
            homepage="https://medmnist.com",
            citation=_MEDMNIST_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> _Examples:
        config = self.builder_config
        return self._generated(medmnist.load(config.flag, size=config.size, root=self._root))


class LidcShapes(_OurBuilder):
    """The nodule shapes of `jaxboost.data.sources.lidc`."""

    name = "lidc_shapes"
    # Another build of the shapes is another version.
    VERSION = tfds.core.Version(f"{lidc.BUILD_VERSION}.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self._described(
            lidc.describe(lidc.SHAPES, EDGE_MM),
            description=_LIDC,
            homepage="https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
            citation=_LIDC_CITATION,
            patients=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> _Examples:
        return self._generated(lidc.load(lidc.SHAPES, size=EDGE_MM, root=self._root))


def names() -> tuple[str, ...]:
    """The names that `build` takes."""
    return (LidcShapes.name, *(f"{MedMNIST.name}/{config.name}" for config in MedMNIST.BUILDER_CONFIGS))


def build(name: str, *, data_dir: str, root: str) -> pathlib.Path:
    """Prepares a data set. If it is already prepared, nothing changes.

    Args:
      name: one of `names()`.
      data_dir: folder of the result.
      root: folder of the original files, see `dataset.data_root`.

    Returns:
      The folder of the data set, `data_dir/NAME[/CONFIG]/VERSION`. It appears when it is complete.

    Raises:
      UserError: the name is unknown, the original files cannot be loaded, or the folder cannot be written.
    """
    if name not in names():
        kinds = "lidc_shapes, medmnist/FLAG or medmnist/FLAG_SIZE"
        raise UserError(f"--name: {name!r} is unknown, {nearest(name, names())}; valid: {kinds}")
    dataset, _, config = name.partition("/")
    builders = {MedMNIST.name: MedMNIST, LidcShapes.name: LidcShapes}
    folder = user_path(data_dir)
    try:
        builder = builders[dataset](root=root, data_dir=os.fspath(folder), config=config or None)
        builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}): choose another folder") from error
    return pathlib.Path(builder.data_dir)


def _features(info: DatasetInfo, *, patients: bool) -> tfds.features.FeaturesDict:
    shape = (info.size,) * info.ndim + (info.channels,)
    if info.ndim == 2:
        image = tfds.features.Image(shape=shape, dtype=np.uint8, encoding_format="png")
    else:
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB)
    label = tfds.features.ClassLabel(names=info.classes)
    features = {
        _image_name(info): image,
        "label": tfds.features.Sequence(label) if TASKS[info.task].multi_label else label,
    }
    return tfds.features.FeaturesDict(features | ({"patient": tfds.features.Text()} if patients else {}))


def _image_name(info: DatasetInfo) -> str:
    return "image" if info.ndim == 2 else "volume"

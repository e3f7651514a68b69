"""Prepared data sets of tensorflow-datasets (TFDS), read without TensorFlow. Needs that package (the extra `tfds`).

A data set is found by its TFDS name, `name[/config][:version]`, in data.root or, if that is empty, in TFDS's own
folder: $TFDS_DATA_DIR, else ~/tensorflow_datasets. Nothing is downloaded or built. The code that built a data set is
not run: everything is read from its files. They must have random access (array_record or parquet); the TFRecord files
that TFDS writes by default need TensorFlow.

Images of another size than S x S pixels are resized, bicubic, without keeping the aspect ratio; volumes must be S^3.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from jaxboost import tasks
from jaxboost.data import decoding
from jaxboost.data.dataset import ALL, SPLITS, Dataset, DatasetInfo, Split, check_size, make_split
from jaxboost.data.problems import ProblemError, reason
from jaxboost.data.readers import versions
from jaxboost.data.rows import images as kept_images
from jaxboost.data.rows import place
from jaxboost.data.rows.store import Made, Store
from jaxboost.data.sources import tfds_features
from jaxboost.data.sources.tfds_features import Fields, find_fields
from jaxboost.data.splits import patients, stratify
from jaxboost.data.walk import state_of
from jaxboost.errors import UserError, missing_extra, nearest
from jaxboost.io import user_path

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

PREFIX = "tfds:"
# The data sets that `jaxboost.data.tfds_builders` builds.
OWN = ("lidc_shapes", "medmnist")
# TFDS's name of a split -> ours.
_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
# Without community data sets (namespace:name) and builder arguments, which need the builder's code.
_NAME = re.compile(r"(?P<name>[A-Za-z_]\w*)(/[\w.\-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?")
# Records per read, which array_record reads in parallel, and reads whose records stay in memory.
_BLOCK, _BLOCKS = 256, 3

logger = logging.getLogger(__name__)


def describe(name: str, size: int, *, root: str) -> DatasetInfo:
    """Describes a data set at `size` pixels; its records are not read.

    Args:
      name: as in TFDS, such as "mnist" or "medmnist/breastmnist:1.0.0".
      size: edge length S of the loaded images in pixels; of volumes, their stored size.
      root: TFDS's `data_dir`; "": its default.

    Raises:
      UserError: the package is missing, the folder does not have the data set, it does not consist of labelled images,
        it lacks a split, or its volumes have another size.
    """
    builder = open_prepared(name, root)
    return _describe(name, builder, find_fields(builder.info, f"{PREFIX}{name}"), size)


def load(
    name: str,
    *,
    size: int,
    root: str,
    ignore_splits: bool = False,
    cache: str = place.ON,
    cache_gb: float = place.MOST_GB,
) -> Dataset:
    """Reads a data set, in the order of its files. Each image is decoded once; large splits are mapped from disk.

    Args:
      name: as for `describe`.
      size: as for `describe`.
      root: as for `describe`.
      ignore_splits: whether its splits are not checked, because all samples are divided anew.
      cache, cache_gb: whether decoded images are kept on disk for the next start, see `place.Keeping`.

    Returns:
      The splits "train", "val" (in TFDS: validation or val) if it exists, and "test"; other splits are left out. A
      data set with a single split of any name has the split "all". Patients come from a feature `patient` or
      `patient_id`, text or integers. Names come from a text feature `file`, else they are `{split}/{index}`.

    Raises:
      UserError: as `describe`; or the files have no random access or are damaged, a label is out of range, a patient is
        empty or in two splits, or a split lacks a class.
    """
    builder = open_prepared(name, root)
    fields = find_fields(builder.info, f"{PREFIX}{name}")
    info = _describe(name, builder, fields, size)
    mapped = _mapped_splits(name, builder)
    if left_out := [split for split in builder.info.splits if split not in mapped]:
        logger.info("%s%s: not used: the splits %s", PREFIX, name, ", ".join(left_out))
    store = _open_store(builder, fields, size, place.Keeping(cache, cache_gb))
    _read_images(store, name, builder, mapped, fields, info)
    counts = {theirs: builder.info.splits[theirs].num_examples for theirs in mapped}
    splits = {ours: _split(name, store, theirs, counts[theirs], fields, info) for theirs, ours in mapped.items()}
    if not ignore_splits:
        _check_splits(splits, info, f"{PREFIX}{name}")
    return Dataset(info=info, splits=splits, baselines={})


def import_tfds() -> Any:
    """Imports tensorflow_datasets, which is optional. Raises UserError if it is not installed."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"the package tensorflow-datasets cannot be imported ({reason(error)}): {missing_extra('tfds')}"
        ) from error
    return tensorflow_datasets


def open_prepared(name: str, root: str) -> "tfds.core.DatasetBuilder":
    """Opens a prepared data set; arguments and errors as of `describe`."""
    tfds = import_tfds()
    from tensorflow_datasets.core import constants, read_only_builder

    match = _NAME.fullmatch(name)
    if match is None:
        text = f"{PREFIX}NAME, {PREFIX}NAME/CONFIG or {PREFIX}NAME/CONFIG:1.0.0"
        raise UserError(f"config field data.source: {PREFIX + name!r} should be {text}")
    folder = user_path(root or constants.DATA_DIR)
    try:
        with _damage(f"{folder / match['name']}", name):
            return read_only_builder.builder_from_files(name, data_dir=os.fspath(folder))
    except tfds.core.DatasetNotFoundError:
        raise UserError(_not_found(name, match["name"], folder)) from None


@contextlib.contextmanager
def _damage(where: str, name: str) -> Iterator[None]:
    """Raises a UserError for TFDS's errors about files that it cannot read."""
    tfds = import_tfds()
    from google.protobuf import json_format, message

    try:
        yield
    except tfds.core.DatasetNotFoundError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{where}: its files have no random access: prepare {name} again, in another folder, with "
            "tensorflow_datasets.builder(..., file_format='array_record')"
        ) from error
    # IndexError: there are fewer records than the metadata says.
    except (OSError, ValueError, RuntimeError, IndexError, json_format.Error, message.Error) as error:
        raise UserError(f"{where}: cannot be read ({reason(error)}): delete it and prepare {name} again") from error


def _not_found(name: str, dataset: str, folder: pathlib.Path) -> str:
    """The message that a data set is not in the folder, with what the user can do."""
    missing = f"{PREFIX}{name} is not prepared in {folder}"
    prepared = sorted(path.parent.relative_to(folder).as_posix() for path in (folder / dataset).rglob("features.json"))
    if prepared:
        return f"{missing}, which has {', '.join(prepared)}: name one of them (NAME/CONFIG:VERSION)"
    if dataset in OWN:
        command = f"python -m jaxboost.data.tfds_builders --name {name.partition(':')[0]} --data_dir {folder}"
        return f"{missing}: run `{command}`, or set data.root to the folder that has it"
    known = import_tfds().list_builders(with_community_datasets=False)
    if dataset in known:
        call = f"builder({name!r}, data_dir={os.fspath(folder)!r}, file_format='array_record').download_and_prepare()"
        return (
            f"{missing}: set data.root to the folder that has it, or prepare it with tensorflow_datasets.{call} "
            "(for many data sets this needs tensorflow; reading does not)"
        )
    found = [path.name for path in sorted(folder.iterdir()) if os.path.isdir(path)] if os.path.isdir(folder) else []
    guess = nearest(dataset, [*found, *OWN, *known])
    return f"{missing}, and tensorflow-datasets has no data set of that name, {guess}"


def _describe(name: str, builder: "tfds.core.DatasetBuilder", fields: Fields, size: int) -> DatasetInfo:
    images, labels, info = fields.image_kind, fields.label_kind, builder.info
    if images.ndim == 3:
        check_size(f"{PREFIX}{name}", size, [images.edge])
    mapped = _mapped_splits(name, builder)
    return DatasetInfo(
        # The name is used in file names.
        name="-".join(["tfds", *info.full_name.split("/")]),
        task=tasks.name_for(len(labels.classes), multi_label=labels.multi_label),
        classes=labels.classes,
        channels=images.channels,
        ndim=images.ndim,
        size=size,
        n_samples={ours: info.splits[theirs].num_examples for theirs, ours in mapped.items()},
        license=info.redistribution_info.license if info.redistribution_info else "",
    )


def _mapped_splits(name: str, builder: "tfds.core.DatasetBuilder") -> Mapping[str, str]:
    """TFDS's name of each split that is used -> our name, in our order."""
    theirs = list(builder.info.splits)
    if len(theirs) == 1:
        return {theirs[0]: ALL}
    mapped = {ours: split for split, ours in reversed(_SPLITS.items()) if split in theirs}
    if missing := [split for split in ("train", "test") if split not in mapped]:
        has = f"{PREFIX}{name} has the splits {', '.join(theirs)}" if theirs else f"{PREFIX}{name} has no splits"
        raise UserError(f"{has}, {' and '.join(missing)} missing: train and test are needed, or a single split")
    return {mapped[ours]: ours for ours in SPLITS if ours in mapped}


def _check_splits(splits: Mapping[str, Split], info: DatasetInfo, where: str) -> None:
    """Raises UserError if a patient is in two splits, or a split lacks a class."""
    known = {name: split for name, split in splits.items() if split.groups is not None}
    patients.check(
        {name: split.groups for name, split in known.items()},
        where,
        names={name: split.names for name, split in known.items()},
        fix="give every patient to one split, or set data.folds for a cross-validation of all of them",
    )
    for name, split in splits.items():
        for _, label in stratify.missing_classes(split.labels, info.classes, {name: np.arange(len(split))}):
            raise UserError(
                f"{where}: its {name} split has no {label!r}: divide the data set again, or leave that class out"
            )


def _as_text(value: bytes | np.integer) -> str:
    return value.decode() if isinstance(value, bytes) else str(int(value))


def _open_store(builder: "tfds.core.DatasetBuilder", fields: Fields, size: int, keeping: place.Keeping) -> Store:
    """Opens the store of a data set's images."""
    folder = os.path.realpath(builder.data_dir)
    identity = {
        "tfds": folder,
        "disk": place.disk_of(folder),
        "size": size,
        "image": fields.image,
        "label": fields.label,
    }
    version = f"{versions.identity([tfds_features.__file__])} {import_tfds().__version__}"
    return kept_images.open_store(builder.info.full_name, identity, keeping, version=version)


def _state(builder: "tfds.core.DatasetBuilder") -> str:
    """Text that is another one when a file of the data set has changed."""
    files = sorted(path for path in pathlib.Path(builder.data_dir).iterdir() if path.is_file())
    return hashlib.sha256("\n".join(f"{path.name} {state_of(path)}" for path in files).encode()).hexdigest()


class _Records(Sequence[Mapping[str, Any]]):
    """The examples of a split, in any order: read in blocks, of which the last few are in memory."""

    def __init__(self, name: str, builder: "tfds.core.DatasetBuilder", split: str, fields: Fields, rows: Sequence[int]):
        self._name, self._folder, self._rows = name, builder.data_dir, rows
        # Decoded here, because TFDS does not convert between grey and colour.
        decoders = {fields.image: import_tfds().decode.SkipDecoding()} if fields.image_kind.encoded else None
        with _damage(self._folder, name):
            self._records = builder.as_data_source(split=split, decoders=decoders)
        self._blocks: dict[int, Sequence[Mapping[str, Any]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        number, place_in_block = divmod(position, _BLOCK)
        with self._lock:
            if number not in self._blocks:
                rows = list(self._rows[number * _BLOCK : (number + 1) * _BLOCK])
                with _damage(self._folder, self._name):
                    self._blocks[number] = self._records.__getitems__(rows)
                for old in sorted(self._blocks)[:-_BLOCKS]:
                    del self._blocks[old]
            return self._blocks[number][place_in_block]


def _prepared(example: Mapping[str, Any], fields: Fields, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """An image, and the labels and names that go with it."""
    texts = {feature: _as_text(example[feature]) for feature in (fields.patient, fields.file) if feature}
    return fields.image_of(example, size), {"labels": fields.labels_of(example).tolist(), "texts": texts}


def _read_images(
    store: Store,
    name: str,
    builder: "tfds.core.DatasetBuilder",
    splits: Iterable[str],
    fields: Fields,
    info: DatasetInfo,
) -> None:
    """Reads the images of the splits, by TFDS's names, into a store."""

    def make(missing: Sequence[str]) -> Iterator[Made]:
        rows_of: dict[str, list[int]] = {}
        for key in missing:
            split, _, row = key.rpartition("/")
            rows_of.setdefault(split, []).append(int(row))
        for split, rows in rows_of.items():
            records = _Records(name, builder, split, fields, rows)
            read = functools.partial(_prepared, fields=fields, size=info.size)
            workers = decoding.workers_for(len(rows), info.ndim)
            results = decoding.call(read, records, workers=workers, threads=min(8, decoding.cores()))
            with (
                contextlib.closing(results),
                tqdm(total=len(rows), desc=f"reading {split}", unit="image", disable=None) as bar,
            ):
                for position, result in results:
                    if isinstance(result, ProblemError):
                        where = f"{PREFIX}{name}, split {split}, example {rows[position]} in {builder.data_dir}"
                        raise UserError(f"{where}: {result}: correct it and prepare {name} again")
                    yield Made(f"{split}/{rows[position]}", *result)
                    bar.update()

    state = _state(builder)
    counts = {split: builder.info.splits[split].num_examples for split in splits}
    wanted = {f"{split}/{row}": state for split, count in counts.items() for row in range(count)}
    store.complete(wanted, make)


def _split(name: str, store: Store, theirs: str, count: int, fields: Fields, info: DatasetInfo) -> Split:
    """Makes one split of what is in the store; `theirs` is its name in TFDS."""
    where = f"{PREFIX}{name}, split {theirs}"
    keys = [f"{theirs}/{row}" for row in range(count)]
    about = [store.about(key) for key in keys]
    images, labels = store.array(keys), np.array([each["labels"] for each in about], np.int64)
    stored = images[..., 0] if isinstance(images, np.ndarray) and info.channels == 1 else images
    split = make_split(info, theirs, stored, labels, where=where)
    texts = {
        feature: [each["texts"][feature] for each in about] for feature in (fields.patient, fields.file) if feature
    }
    if "" in texts.get(fields.patient, ()):
        row = texts[fields.patient].index("")
        raise UserError(f"{where}, example {row}: feature {fields.patient!r} is empty: every patient needs a name")
    groups = np.array(texts[fields.patient]) if fields.patient else None
    names = texts[fields.file] if fields.file else [f"{theirs}/{row}" for row in range(count)]
    return dataclasses.replace(split, groups=groups, names=np.array(names))

"""A data set: its description, its splits, and the scalar scores that models are compared with."""

import collections
import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxboost.errors import UserError
from jaxboost.io import user_path
from jaxboost.tasks import TASKS

if TYPE_CHECKING:
    from jaxboost.data.columns import Column

SPLITS = ("train", "val", "test")
ALL = "all"  # the only split of a data set without official ones


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The description of a data set at one image size; it can be made without the files.

    Attributes:
      name: such as "breastmnist".
      task: MedMNIST's name, a key of `tasks.TASKS`.
      classes: class names in label order.
      channels: 1 or 3, as stored.
      ndim: spatial dimensions, 2 or 3.
      size: edge length S in pixels.
      n_samples: samples per split: the published numbers or, once loaded, the actual ones; empty if unknown.
      license: licence of the data.
      excluded: reason -> number of images that loading a user's folder left out; empty if there are none or before it.
      columns: how clinical columns become features; () without them, and before they are fitted.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    channels: int
    ndim: int
    size: int
    n_samples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    license: str = ""
    excluded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    columns: "Sequence[Column]" = ()

    @property
    def labels_per_sample(self) -> int:
        """L: the number of classes for a multi-label task, else 1."""
        return TASKS[self.task].labels_per_example(len(self.classes))

    @property
    def column_features(self) -> int:
        """F: the number of features of the clinical columns."""
        return sum(len(column.features) for column in self.columns)


class MappedRows:
    """Rows of memory-mapped arrays, for a `Split` whose array is too large for memory.

    A row is read from disk when it is indexed; `np.asarray` reads all of them.

    Attributes:
      shape: (n, ...).
      dtype: type of the values.
    """

    def __init__(
        self,
        parts: "Sequence[np.ndarray | MappedRows]",
        rows: np.ndarray | None = None,
        *,
        digests: Sequence[Sequence[str] | None] = (),
    ):
        """Concatenates arrays without reading them.

        Args:
          parts: the arrays; their shapes may differ in the first axis only.
          rows: indices into the concatenation, int (n,); None: all rows.
          digests: of each part the SHA-256 of its rows' bytes, if known; () if none is known.
        """
        self._parts, self._digests = parts, digests or [None] * len(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows
        self.shape = (len(self._rows), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """One row, or several, which are read into a new array."""
        if isinstance(index, slice | Sequence) or (isinstance(index, np.ndarray) and index.ndim):
            return self._read(np.atleast_1d(np.arange(len(self))[index]))
        part, row = self._place(index)
        return self._parts[part][row]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("MappedRows cannot become one array without a copy")
        return self._read(range(len(self)), dtype)

    def take(self, rows: np.ndarray) -> "MappedRows":
        """The rows `rows`, int (m,), in that order."""
        return MappedRows(self._parts, self._rows[rows], digests=self._digests)

    def digest(self, index: int) -> str:
        """SHA-256 of the bytes of a row; it is not read if the digest is known."""
        part, row = self._place(index)
        known, values = self._digests[part], self._parts[part]
        if known is not None:
            return known[row]
        return values.digest(row) if isinstance(values, MappedRows) else digest_of(values[row])

    def _place(self, index: int) -> tuple[int, int]:
        """The part of a row, and its number there."""
        row = self._rows[index]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return part, int(row - self._starts[part])

    def _read(self, rows: Sequence[int] | np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        # Row by row: the rows of a part at once would be in memory twice.
        found = np.empty((len(rows), *self.shape[1:]), dtype or self.dtype)
        for position, row in enumerate(rows):
            found[position] = self[int(row)]
        return found


def digest_of(row: np.ndarray) -> str:
    """SHA-256 of the bytes of a row, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()


def row_digests(images: np.ndarray | MappedRows) -> Iterator[str]:
    """SHA-256 of the bytes of each row."""
    if isinstance(images, MappedRows):
        return (images.digest(row) for row in range(len(images)))
    return map(digest_of, images)


@dataclasses.dataclass(frozen=True)
class Split:
    """Samples: row i of every array belongs to sample i.

    Attributes:
      images: uint8 (n, S, S, C) or (n, S, S, S, C) with values 0..255; or float32 source tokens (n, d, W). Large
        ones stay on disk, as an np.memmap, or as `MappedRows` after samples were selected or joined.
      labels: int64 (n, L).
      groups: patients, str (n,); None: unknown, every sample counts as its own patient.
      names: files, str (n,), or None.
      cells: of clinical columns, as the table has them, str (n, K); or None.
      columns: the features of these cells, float32 (n, F), see `data.columns`; None before they are computed.
    """

    images: np.ndarray | MappedRows
    labels: np.ndarray
    groups: np.ndarray | None = None
    names: np.ndarray | None = None
    cells: np.ndarray | None = None
    columns: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def patients(self) -> np.ndarray:
        """`groups`, or `names` if the patients are unknown, str (n,)."""
        found = self.names if self.groups is None else self.groups
        if found is None:
            raise ValueError("samples without patients have no names either")
        return found

    def take(self, rows: np.ndarray) -> "Split":
        """The samples `rows`, int (m,), in that order."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Split(**{name: None if array is None else _take(array, rows) for name, array in fields.items()})

    def named(self, split: str) -> "Split":
        """Returns the split with names; if it has none, they are `{split}/{index}`."""
        if self.names is not None:
            return self
        return dataclasses.replace(self, names=np.array([f"{split}/{index}" for index in range(len(self))]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
      info: its description.
      splits: "train", "val" and "test"; or only "all" if there are no official splits.
      baselines: score name -> split -> values (n,) of a scalar score, larger for class 1, that a model should beat;
        empty if no such score is known.
    """

    info: DatasetInfo
    splits: Mapping[str, Split]
    baselines: Mapping[str, Mapping[str, np.ndarray]]

    def pooled(self) -> "Dataset":
        """Joins all splits, in their order, to the one split "all"; every sample gets a name of its own."""
        whole = join_splits([split.named(name) for name, split in self.splits.items()])
        whole = dataclasses.replace(whole, names=_numbered(whole.names))
        baselines = {
            score: {ALL: np.concatenate([values[name] for name in self.splits])}
            for score, values in self.baselines.items()
        }
        return self._with_splits({ALL: whole}, baselines)

    def divided(self, rows: Mapping[str, np.ndarray]) -> "Dataset":
        """Divides the split "all"; `rows` has the indices of the samples of each new split."""
        baselines = {
            score: {name: values[ALL][found] for name, found in rows.items()}
            for score, values in self.baselines.items()
        }
        return self._with_splits({name: self.splits[ALL].take(found) for name, found in rows.items()}, baselines)

    def _with_splits(self, splits: Mapping[str, Split], baselines: Mapping[str, Mapping[str, np.ndarray]]) -> "Dataset":
        info = dataclasses.replace(self.info, n_samples={name: len(split) for name, split in splits.items()})
        return Dataset(info=info, splits=splits, baselines=baselines)


def data_root(root: str) -> pathlib.Path:
    """The folder of the data files: `root` if not empty, else $MEDMNIST_ROOT, else ~/.medmnist."""
    return user_path(root or os.environ.get("MEDMNIST_ROOT") or "~/.medmnist")


def check_size(name: str, size: int, sizes: Sequence[int]) -> None:
    """Raises UserError if `size` is not one of the `sizes` of the data set."""
    if size not in sizes:
        raise UserError(f"data.size={size}: {name} comes in {', '.join(map(str, sizes))}")


def make_split(
    info: DatasetInfo, split: str, images: np.ndarray | MappedRows, labels: np.ndarray, *, where: str
) -> Split:
    """Makes a split of stored images and labels, which are checked against `info`.

    Args:
      info: the description of the data set.
      split: "train", "val" or "test".
      images: uint8 (n, S, S), (n, S, S, 3) or (n, S, S, S), or `MappedRows` with one more axis for one channel.
      labels: integers (n, L).
      where: the file, for messages.

    Raises:
      UserError: an array does not have the type or shape that `info` requires, or a label is out of range.
    """
    with_channels = info.channels > 1 or isinstance(images, MappedRows)
    shape = (info.size,) * info.ndim + ((info.channels,) if with_channels else ())
    if images.dtype != np.uint8 or images.ndim != len(shape) + 1 or images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, ("n", *shape)))
        raise UserError(f"{where}: {split}_images is {images.dtype} {images.shape}, expected uint8 ({wanted})")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images), info.labels_per_sample):
        wanted = f"({len(images)}, {info.labels_per_sample})"
        raise UserError(f"{where}: {split}_labels is {labels.dtype} {labels.shape}, expected integers {wanted}")
    highest = TASKS[info.task].highest_label(len(info.classes))
    if labels.min() < 0 or labels.max() > highest:
        found = f"{labels.min()}..{labels.max()}"
        raise UserError(f"{where}: {split}_labels has values {found}, expected 0..{highest}")
    if not with_channels:
        images = images[..., np.newaxis]
    return Split(images=images, labels=labels.astype(np.int64))


def join_splits(splits: Sequence[Split]) -> Split:
    """Concatenates splits. The result has `groups`, `names` and columns only if every split does."""
    arrays = {}
    for field in dataclasses.fields(Split):
        parts = [getattr(split, field.name) for split in splits]
        arrays[field.name] = None if any(part is None for part in parts) else _join(parts)
    return Split(**arrays)


def _numbered(names: np.ndarray) -> np.ndarray:
    """Returns names, str (n,), with a number after each that came before: tables of splits and folds go by names."""
    used = set(names.tolist())
    if len(used) == len(names):
        return names
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for name in names.tolist():
        counts[name] += 1
        numbered = name
        while counts[name] > 1 and (numbered := f"{name} ({counts[name]})") in used:
            counts[name] += 1
        used.add(numbered)
        found.append(numbered)
    return np.array(found)


def _take(array: np.ndarray | MappedRows, rows: np.ndarray) -> np.ndarray | MappedRows:
    if isinstance(array, np.memmap):
        return MappedRows([array], rows)
    return array.take(rows) if isinstance(array, MappedRows) else array[rows]


def _join(parts: Sequence[np.ndarray | MappedRows]) -> np.ndarray | MappedRows:
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, np.memmap | MappedRows) for part in parts):
        return MappedRows(parts)
    return np.concatenate(parts)

"""Lung masks of radiographs: a folder of PNG files, or a table of run lengths in the format of CheXmask.

CheXmask (Gaggion et al., Scientific Data 11:511 (2024)): a CSV file with a column that names the image, the run lengths
'Left Lung', 'Right Lung' and 'Heart', and the 'Height' and 'Width' of the mask. A run is "start length". Its data
dictionary does not define `start`; its code counts pixels row by row from 1, and so does this module.
"""

import csv
import dataclasses
import gzip
import hashlib
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.readers.arrays import MAX_PIXELS
from jaxboost.data.readers.csv_text import long_cells
from jaxboost.data.readers.pictures import SUFFIXES, read_picture
from jaxboost.data.sources.folder import cell_values
from jaxboost.data.sources.folder.extensions import without_suffix
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.walk import ABSENT, not_fetched, state_of, unreadable
from jaxboost.errors import UserError

# Names of the column with the image's name, in CheXmask and others, as `cell_values.column` writes them.
_ID_COLUMNS = ("file", "filename", "image", "imageid", "imageindex", "dicomid", "path", "stem")
_LUNGS = ("Left Lung", "Right Lung")
# How far the height-to-width ratios of mask and image may differ, relative to each other.
_PROPORTIONS = 0.02


class Masks(Protocol):
    """Masks by the stems of their images. They can be pickled."""

    def __call__(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """The mask, bool (h, w), of the image with this stem and shape (H, W). Raises ProblemError."""
        ...

    def state(self, name: str) -> str:
        """Text that is another one when the mask has changed."""
        ...

    def only(self, name: str) -> "Masks":
        """The masks without those of other images."""
        ...


def stem(name: str) -> str:
    """Returns the name of an image's file without folders and without the extension of an image; other dots stay."""
    return without_suffix(name.strip().replace("\\", "/").rpartition("/")[2], SUFFIXES)


def by_stem(paths: Mapping[Entry, pathlib.Path], problems: Problems) -> dict[str, Entry]:
    """Returns the entry of each stem. A second one with the same stem is a problem: it would have the same mask.

    The names are those of the files: a table may spell them differently.
    """
    first_of: dict[str, Entry] = {}
    for entry, path in paths.items():
        if (first := first_of.setdefault(stem(path.name), entry)) is not entry:
            entry.report(problems, f"has the same mask as {first.file}{first.in_row}: rename one of them")
    return first_of


def open_masks(path: pathlib.Path, wanted: Collection[str], option: str = "data.masks") -> Masks:
    """Opens the masks in `path`: a folder of `{stem}.png` (lungs are above 0), or a .csv or .csv.gz table.

    Args:
      path: the folder or the table.
      wanted: stems of the images. Other rows of a table are not stored, because tables of CheXmask have some GB.
      option: what the user gave the path as, for messages.

    Raises:
      UserError: there is no such folder or file, or it is not a table with lung masks.
    """
    if os.path.isdir(path):
        return _Folder(path)
    if not path.name.lower().endswith((".csv", ".csv.gz")):
        raise UserError(f"{option}: {path} is neither a folder of PNG files nor a .csv or .csv.gz file")
    if text := unreadable(path):
        raise UserError(f"{option}: {path} {text}: check the path" if text == ABSENT else f"{option}: {path} {text}")
    try:
        table = _read_table(path, frozenset(wanted))
    except ProblemError as problem:
        raise UserError(f"{option}: {path} {problem}") from problem
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{option}: {path} cannot be read ({error}): check the file") from error
    return _Table(path.name, table)


def bounding_box(mask: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the smallest rectangle around the mask, (left, top, right, bottom), in pixels of an image (H, W).

    A mask of another resolution is scaled to the image; the rectangle is rounded outwards to whole pixels.

    Raises:
      ProblemError: the mask is empty, or its proportions differ from the image's.
    """
    (height, width), (rows, columns) = shape, mask.shape
    if abs(rows * width / (columns * height) - 1) > _PROPORTIONS:
        raise ProblemError(
            f"its mask of {columns} x {rows} pixels has other proportions than the image of {width} x {height}: "
            "give a mask of the whole image (CheXmask: OriginalResolution)"
        )
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not down.size:
        raise ProblemError("its mask is empty")
    return (
        int(across[0]) * width // columns,
        int(down[0]) * height // rows,
        math.ceil((int(across[-1]) + 1) * width / columns),
        math.ceil((int(down[-1]) + 1) * height / rows),
    )


def _max_pixels(shape: tuple[int, int]) -> int:
    """Returns the most pixels that the mask of an image (H, W) may have: at least as many as the image."""
    return max(MAX_PIXELS, math.prod(shape))


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder of PNG files."""

    folder: pathlib.Path

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.png"

    def state(self, name: str) -> str:
        return state_of(self._path(name))

    def only(self, name: str) -> "_Folder":
        return self

    def __call__(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        path = self._path(name)
        if not os.path.lexists(path):
            raise ProblemError(f"its mask {path} is missing")
        if text := unreadable(path):
            raise ProblemError(f"its mask {path} {text}")
        try:
            mask = read_picture(path, max_pixels=_max_pixels(shape)) > 0
            return np.any(mask, axis=2) if mask.ndim == 3 else mask
        except ProblemError as problem:
            # The limit of a mask is not that of data.max_pixels.
            text = f"{problem.found}: give a smaller mask" if problem.setting else problem
            raise ProblemError(f"its mask {path} {not_fetched(path) or text}") from problem


@dataclasses.dataclass(frozen=True)
class _Runs:
    """A row of a table: the run lengths of both lungs and the size of the mask, all as text, "" if missing."""

    row: int
    lungs: tuple[str, ...]
    height: str
    width: str


def _read_table(path: pathlib.Path, wanted: frozenset[str]) -> dict[str, list[_Runs]]:
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with long_cells(), opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        key = next((name for name in columns if cell_values.column(name) in _ID_COLUMNS), None)
        missing = [name for name in _LUNGS if name not in columns]
        if key is None or missing:
            lacks = f"column {missing[0]!r}" if missing else "a column that names the image, such as 'image_id'"
            raise ProblemError(f"lacks {lacks}; found: {', '.join(columns)}")
        table: dict[str, list[_Runs]] = {}
        for number, row in enumerate(reader, 2):
            name = stem(row[key] or "")
            if name in wanted:
                lungs = tuple(row[lung] or "" for lung in _LUNGS)
                runs = _Runs(number, lungs, row.get("Height") or "", row.get("Width") or "")
                table.setdefault(name, []).append(runs)
    return table


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of run lengths: its name, and its rows by stem."""

    where: str
    rows: Mapping[str, Sequence[_Runs]]

    def state(self, name: str) -> str:
        found = [dataclasses.replace(runs, row=0) for runs in self.rows.get(name, ())]
        return hashlib.sha256(repr(found).encode()).hexdigest()

    def only(self, name: str) -> "_Table":
        return _Table(self.where, {name: self.rows.get(name, ())})

    def __call__(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        found = self.rows.get(name, ())
        if not found:
            raise ProblemError(f"its mask is missing in {self.where}")
        if len(found) > 1:
            rows = ", ".join(str(runs.row) for runs in found)
            raise ProblemError(f"{self.where} has several masks for it, in rows {rows}")
        return _from_runs(found[0], self.where, shape)


def _from_runs(runs: _Runs, where: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        # pandas writes whole numbers with a fraction in a column with gaps.
        height = int(float(runs.height)) if runs.height else shape[0]
        width = int(float(runs.width)) if runs.width else shape[1]
        if height < 1 or width < 1 or height * width > _max_pixels(shape):
            raise ValueError(f"its size of {width} x {height} is negative, zero or too large")
        mask = np.zeros(height * width, bool)
        for text in runs.lungs:
            for start, length in np.array(text.split(), np.int64).reshape(-1, 2):
                if start < 1 or length < 0 or start - 1 + length > mask.size:
                    raise ValueError(f"run {start} {length} is outside of {width} x {height} pixels")
                mask[start - 1 : start - 1 + length] = True
        return mask.reshape(height, width)
    except (ValueError, OverflowError) as error:
        raise ProblemError(f"its mask in row {runs.row} of {where} cannot be read ({error})") from error

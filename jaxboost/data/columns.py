"""Clinical columns as numbers that a model reads; all that is fitted is fitted to the training split alone.

A column of numbers becomes (value - mean) / SD, and 0 where the value is missing. A column of categories has a 0 or 1
for each category of the training split. A column with missing values in the training split has one feature more, which
is 1 where the value is missing. Where all values of the training split are equal, the feature of the value is 0 in
every split: its weight cannot be learnt, and another value elsewhere would add noise.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from jaxboost.data.dataset import Dataset, Split
from jaxboost.data.problems import ProblemError
from jaxboost.data.sources.folder import cell_values, table_columns
from jaxboost.data.sources.folder.table_columns import Wanted
from jaxboost.data.walk import some
from jaxboost.errors import UserError

# A column with more categories names samples rather than groups of them.
MAX_CATEGORIES = 100
# In fewer samples a column may separate the classes by chance.
_FEW = 10

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """How the cells of a column become features.

    Attributes:
      name: of the column.
      categories: of the training split, sorted; None: the column has numbers.
      mean, sd: of the numbers in the training split (SD with divisor n); None for categories.
      missing: whether a feature tells that the value is missing.
      separates: whether it alone tells the class of every sample of the training split; see `fit`.
    """

    name: str
    categories: tuple[str, ...] | None = None
    mean: float | None = None
    sd: float | None = None
    missing: bool = False
    separates: bool = False

    def __post_init__(self):
        """Raises ValueError if it can encode nothing, as a file that was altered may have it."""
        numbers = (self.mean, self.sd)
        if self.categories is not None:
            right = numbers == (None, None) and self.categories
        else:
            right = None not in numbers and np.isfinite(np.array(numbers, float)).all() and self.sd >= 0
        if not right:
            raise ValueError(f"column {self.name!r} has neither categories nor a mean and a SD")

    @property
    def features(self) -> tuple[str, ...]:
        """The names of its features, such as ("age", "age missing") or ("sex=F", "sex=M")."""
        own = (self.name,) if self.categories is None else tuple(f"{self.name}={each}" for each in self.categories)
        return own + ((f"{self.name} missing",) if self.missing else ())

    @property
    def constant(self) -> bool:
        """Whether all values of the training split are equal: the feature of the value is then 0 everywhere."""
        return self.sd == 0 if self.categories is None else len(self.categories) == 1

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """The features (n, F) of clean cells (n,), float64.

        Raises:
          ProblemError: a cell of a column of numbers has none; see `problem`.
        """
        absent = np.array([cell_values.is_missing(cell) for cell in cells], bool)
        if self.categories is None:
            assert self.mean is not None
            assert self.sd is not None
            pairs = zip(cells, absent, strict=True)
            values = np.array([self.mean if none else table_columns.number(cell) for cell, none in pairs])
            found = ((values - self.mean) / (self.sd or 1.0))[:, np.newaxis]
        else:
            labels = np.array([cell_values.label(cell) for cell in cells], str)
            found = (labels[:, np.newaxis] == np.array(self.categories)) & ~absent[:, np.newaxis]
        if self.constant:
            found = np.zeros_like(found)
        return np.concatenate([found, *([absent[:, np.newaxis]] if self.missing else [])], axis=1, dtype=np.float64)

    def problem(self, cell: str) -> str:
        """What is wrong with a cell; "" if nothing is."""
        if self.categories is not None or cell_values.is_missing(cell):
            return ""
        try:
            table_columns.number(cell)
        except ProblemError as error:
            return f"column {self.name!r}: {error}"
        return ""

    def unseen(self, cells: Sequence[str]) -> list[str]:
        """The categories among cells that the training split does not have."""
        if self.categories is None:
            return []
        found = dict.fromkeys(cell_values.label(cell) for cell in cells if not cell_values.is_missing(cell))
        return [name for name in found if name not in self.categories]


def width(columns: Sequence[Column]) -> int:
    """F: the number of features of columns."""
    return sum(len(column.features) for column in columns)


def encode(columns: Sequence[Column], cells: np.ndarray, where: str) -> np.ndarray:
    """The features float32 (n, F) of cells, str (n, K); the log tells of categories that the columns do not have.

    Args:
      columns: K columns.
      cells: clean.
      where: which samples these are, for the log and messages.

    Raises:
      UserError: a cell of a column of numbers has none, or one that is too large.
    """
    parts = []
    for position, column in enumerate(columns):
        own = cells[:, position].tolist()
        if problem := next(filter(None, map(column.problem, own)), ""):
            raise UserError(f"{where}: {problem}")
        if unseen := column.unseen(own):
            count = sum(cell_values.label(cell) in unseen for cell in own)
            logger.warning(
                "%s: column %r has values that the training split does not have, in %d of %d samples: %s; they count as"
                " none of its categories",
                where,
                column.name,
                count,
                len(own),
                some(unseen),
            )
        absent = sum(map(cell_values.is_missing, own))
        if absent and not column.missing:
            logger.warning(
                "%s: column %r is empty in %d of %d samples, and never in the training split: there it counts as %s",
                where,
                column.name,
                absent,
                len(own),
                "the mean" if column.categories is None else "none of its categories",
            )
        parts.append(column.encode(own))
    with np.errstate(over="ignore"):
        found = np.concatenate(parts, axis=1).astype(np.float32)
    for position, name in enumerate(name for column in columns for name in column.features):
        if not np.isfinite(found[:, position]).all():
            raise UserError(f"{where}: column {name!r} has a value that is too large for float32: correct it")
    return found


def fit(split: Split, wanted: Sequence[Wanted], classes: Sequence[str] = ()) -> tuple[Column, ...]:
    """Fits columns to the training split, whose `cells` are those of the wanted columns.

    The log tells of columns with one value, of columns that separate the classes, and of those whose categories seem to
    name samples. The kind of a column, too, is found from the training split: `table_columns.check` has refused tables
    in which it would differ between splits.

    Raises:
      UserError: a column has no value, or is of too many categories.
    """
    assert split.cells is not None
    found = []
    for position, (name, categorical) in enumerate((each.name, each.categorical) for each in wanted):
        cells = split.cells[:, position].tolist()
        known = [cell for cell in cells if not cell_values.is_missing(cell)]
        if not known:
            raise UserError(
                f"config field data.columns: {name!r} has no value in the training split: leave it out of data.columns"
            )
        missing = len(known) < len(cells)
        if not categorical and all(map(table_columns.is_number, known)):
            column = _of_numbers(name, np.array([table_columns.number(cell) for cell in known]), missing)
        else:
            column = _of_categories(name, [cell_values.label(cell) for cell in known], missing)
            _warn_of_names(column, len(cells))
        if column.constant:
            logger.warning(
                "column %r has one value in the training split, %r: %s",
                name,
                known[0],
                "only whether it is missing is read" if missing else "it tells nothing, and is 0 in every split",
            )
        if _separates(column, cells, split.labels):
            column = dataclasses.replace(column, separates=True)
            logger.warning(
                "column %r alone separates the classes of the training split: check that it is known before the"
                " diagnosis and does not follow from it",
                name,
            )
        found.append(column)
    return tuple(found)


def encoded(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with `columns` in each split, and their encoding in its description.

    Args:
      dataset: whose splits have cells; one of them is "train", the only one that is fitted to.
      names: `data.columns`; () returns the data set unchanged.

    Raises:
      UserError: see `fit` and `encode`.
    """
    if not names:
        return dataset
    columns = fit(dataset.splits["train"], table_columns.parse(names))
    splits = {}
    for name, split in dataset.splits.items():
        assert split.cells is not None
        splits[name] = dataclasses.replace(split, columns=encode(columns, split.cells, f"split {name}"))
    logger.info("clinical columns: %s", ", ".join(name for column in columns for name in column.features))
    return dataclasses.replace(dataset, info=dataclasses.replace(dataset.info, columns=columns), splits=splits)


def of_values(columns: Sequence[Column], given: Mapping[str, Any] | None, count: int) -> np.ndarray | None:
    """The features float32 (n, F) of values that a user gives in Python; None if there are no columns.

    Args:
      columns: of the model.
      given: name of a column -> n values: texts or numbers; None, NaN or "" where one is missing. A pandas table works
        too. Further columns are not read.
      count: n.

    Raises:
      UserError: a column is missing, is no list of n values, or a value is wrong.
    """
    if not columns:
        return None
    names = ", ".join(column.name for column in columns)
    if given is None:
        raise UserError(f"columns is missing: the model reads {names}: give columns={{name: values}}")
    # A pandas table is no Mapping.
    if not (isinstance(given, Mapping) or hasattr(given, "columns")):
        raise UserError(f"columns is of type {type(given).__name__}: give a dict, name -> list of {count} values")
    cells = []
    for column in columns:
        if column.name not in given:
            raise UserError(f"columns: {column.name!r} is missing: the model reads {names}")
        values = _listed(given[column.name], column.name, count)
        if len(values) != count:
            raise UserError(f"columns: {column.name!r} has {len(values)} values, for {count} images: give one for each")
        cells.append([_text(value) for value in values])
    return encode(columns, np.array(cells, str).T.reshape(count, len(columns)), "columns")


def _listed(values: Any, name: str, count: int) -> list[Any]:
    """The values of a column as a list; a text would be read as its letters, and a set has no order."""
    unfit = isinstance(values, str | bytes | Mapping | Set) or getattr(values, "ndim", 1) != 1
    if unfit or not isinstance(values, Iterable):
        raise UserError(f"columns: {name!r} is of type {type(values).__name__}: give a list of {count} values")
    return [*values]


def _text(value: Any) -> str:
    """A value as the cell of a table."""
    if value is None:
        return ""
    # numpy's scalars have another repr than Python's.
    value = value.item() if isinstance(value, np.generic) else value
    return cell_values.clean(repr(value) if isinstance(value, float) else str(value))


def _of_numbers(name: str, values: np.ndarray, missing: bool) -> Column:
    with np.errstate(over="ignore", invalid="ignore"):
        mean, sd = float(values.mean()), float(values.std())
    if not np.isfinite([mean, sd]).all():
        raise UserError(f"config field data.columns: {name!r} has numbers that are too large: correct them")
    # The rounded mean of equal numbers may differ from them.
    equal = values.min() == values.max()
    return Column(name=name, mean=float(values[0]) if equal else mean, sd=0.0 if equal else sd, missing=missing)


def _of_categories(name: str, labels: Sequence[str], missing: bool) -> Column:
    categories = tuple(sorted(set(labels)))
    if len(categories) > MAX_CATEGORIES:
        raise UserError(
            f"config field data.columns: {name!r} has {len(categories)} categories in the training split, more than"
            f" {MAX_CATEGORIES}: group them, or leave the column out"
        )
    return Column(name=name, categories=categories, missing=missing)


def _warn_of_names(column: Column, count: int) -> None:
    """Warns of a column whose categories are more than half as many as the `count` samples of the training split."""
    assert column.categories is not None
    if 2 * len(column.categories) > count:
        logger.warning(
            "column %r has %d categories in %d samples of the training split: if it names samples, patients or visits,"
            " leave it out of data.columns",
            column.name,
            len(column.categories),
            count,
        )


def _separates(column: Column, cells: Sequence[str], labels: np.ndarray) -> bool:
    """Whether a column alone tells the class of each training sample; in a multi-label task, one of the labels."""
    groups = list(_groups(column, cells))
    return len(groups) >= _FEW and any(
        len(np.unique(each)) > 1 and _tell(groups, each, ordered=column.categories is None) for each in labels.T
    )


def _groups(column: Column, cells: Sequence[str]) -> Iterator[float | str | None]:
    """The value of each sample: a number or a category; None where it is missing."""
    for cell in cells:
        if cell_values.is_missing(cell):
            yield None
        else:
            yield table_columns.number(cell) if column.categories is None else cell_values.label(cell)


def _tell(groups: Sequence[Any], labels: np.ndarray, *, ordered: bool) -> bool:
    """Whether samples of a group have one label and, if groups are `ordered`, each label has one range of them."""
    label_of: dict[Any, set[int]] = {}
    for group, label in zip(groups, labels.tolist(), strict=True):
        label_of.setdefault(group, set()).add(label)
    if any(len(found) > 1 for found in label_of.values()):
        return False
    if not ordered:
        # With a category for each sample there is nothing to see.
        return 2 * len(label_of) <= len(groups)
    along = [min(label_of[group]) for group in sorted(group for group in label_of if group is not None)]
    changes = sum(one != other for one, other in itertools.pairwise(along))
    return changes == len(set(along)) - 1

"""The clinical columns of files to predict: from a table of the user's, or from labels.csv in a folder of files."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxboost.data.problems import Problems
from jaxboost.data.sources.folder import file_names, inputs, labels
from jaxboost.data.sources.folder.labels import Entry
from jaxboost.data.sources.folder.table_columns import Wanted
from jaxboost.data.walk import printable, some
from jaxboost.errors import UserError
from jaxboost.io import user_path

FLAG = "--table"


def find(
    given: Sequence[str],
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    problem: Callable[[int, str], str],
    *,
    table: str = "",
) -> np.ndarray:
    """The cells of each file, str (n, K).

    Args:
      given: the inputs, as for `inputs.find`.
      files: the n files that it found, or some of them.
      names: of the K columns.
      problem: (number of the column, cell) -> what is wrong with it, or "".
      table: CSV file with the column `file` and these columns. Its files are relative to its own folder or to one of
        the folders among the inputs, or below images/ there. "": labels.csv of the folder that holds a file.

    Raises:
      UserError: there is no table, it has problems, or it does not have one row for each file.
    """
    folders = inputs.folders(given)
    own = {folder: path for folder in folders if (path := folder / labels.FILE).is_file()}
    if not table and not own:
        columns = ", ".join(("file", *names))
        raise UserError(
            f"{FLAG} is missing: the model reads clinical columns: give a CSV file with the columns {columns}, or"
            f" write it as {labels.FILE} into the folder of --input"
        )
    if table:
        path = user_path(table)
        rows = _rows(path, (path.parent, *folders), files, names, problem)
    else:
        rows = {}
        # The innermost folder comes last, and counts.
        for folder in sorted(own, key=lambda each: len(each.parts)):
            rows |= _rows(own[folder], (folder,), files, names, problem)
    if missing := [printable(file) for file in files if file not in rows]:
        where = table or ", ".join(map(str, own.values()))
        raise UserError(f"{where}: no row for {some(missing)}: add one for each file of --input")
    return np.array([rows[file].cells for file in files], str).reshape(len(files), len(names))


def _rows(
    path: pathlib.Path,
    bases: Iterable[pathlib.Path],
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    problem: Callable[[int, str], str],
) -> Mapping[pathlib.Path, Entry]:
    """File -> its row in a table, for the files that have one."""
    problems = Problems(path.parent, path.name)
    rows = labels.read_entries(path, problems, required=("file",), wanted=[Wanted(name) for name in names])
    places = [place for base in bases for place in (base, base / file_names.IMAGES)]
    by_path = {os.path.realpath(file): file for file in files}
    found: dict[pathlib.Path, Entry] = {}
    for row in rows:
        paths = dict.fromkeys(os.path.realpath(place / row.file) for place in places)
        named = [by_path[each] for each in paths if each in by_path]
        if len(named) > 1:
            row.report(problems, f"may be {some(map(printable, named))}: write the whole path")
        for file in named[:1]:
            if found.setdefault(file, row) is not row:
                row.report(problems, f"is listed{found[file].in_row} already")
            for text in filter(None, map(problem, range(len(names)), row.cells)):
                row.report(problems, text)
    problems.raise_any()
    return found

"""The clinical columns of files to predict: from a table of the user's, or from labels.csv beside the files."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxboost.data.problems import ProblemError, Problems
from jaxboost.data.sources.folder import file_names, inputs, labels, table_columns
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
        the folders of the inputs, or below images/ there. "": labels.csv of the folder that holds a file; of a folder
        images/, also the one beside it.

    The rows name files as those of a training's table do, see `file_names.FileIndex`.

    Raises:
      UserError: there is no table, it has problems, or it does not have one row for each file.
    """
    named = inputs.folders(given)
    folders = _folders(named, files)
    own = {folder: path for folder in folders if (path := folder / labels.FILE).is_file()}
    if not table and not own:
        columns = ", ".join(("file", *names))
        raise UserError(
            f"{FLAG} is missing: the model reads clinical columns: give a CSV file with the columns {columns}, or"
            f" write it as {labels.FILE} into the folder of --input"
        )
    if table:
        path = user_path(table)
        rows = _rows(path, (path.parent, *folders), named, files, names, problem)
    else:
        rows = {}
        # The innermost folder comes last, and counts.
        for folder in sorted(own, key=lambda each: len(each.absolute().parts)):
            rows |= _rows(own[folder], (folder,), (folder,), files, names, problem)
    if missing := [printable(file) for file in files if file not in rows]:
        where = table or ", ".join(map(str, own.values()))
        raise UserError(f"{where}: no row for {some(missing)}: add one for each file of --input")
    return np.array([rows[file].cells for file in files], str).reshape(len(files), len(names))


def _folders(named: Sequence[pathlib.Path], files: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The folders that may have the table of files, or that its names may start from.

    They are those among the inputs and those of files that are given by name, and for a folder images/ the one above.

    Args:
      named: the folders among the inputs.
      files: the files.
    """
    beside = [file.parent for file in files if not any(folder in file.parents for folder in named)]
    found = dict.fromkeys((*named, *beside))
    above = [folder.absolute().parent for folder in found if folder.absolute().name == file_names.IMAGES]
    return [*dict.fromkeys((*above, *found))]


def _rows(
    path: pathlib.Path,
    bases: Iterable[pathlib.Path],
    searched: Iterable[pathlib.Path],
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    problem: Callable[[int, str], str],
) -> dict[pathlib.Path, Entry]:
    """File -> its row in a table, for the files that have one.

    Args:
      path: the table.
      bases: folders that its names may be relative to; below images/ there counts first.
      searched: those of them whose files a name may also mean in another form.
      files, names, problem: see `find`.

    Raises:
      UserError: the table has problems.
    """
    problems = Problems(path.parent, path.name)
    wanted = [Wanted(name) for name in names]
    rows = labels.read_entries(path, problems, required=("file",), wanted=wanted, whose=table_columns.OF_MODEL)
    places = [(base / file_names.IMAGES, base) for base in bases]
    by_path = {os.path.realpath(file): file for file in files}
    found: dict[pathlib.Path, Entry] = {}

    def take(row: Entry, paths: Iterable[str]) -> None:
        named = [by_path[each] for each in dict.fromkeys(paths) if each in by_path]
        if len(named) > 1:
            row.report(problems, f"may be {some(map(printable, named))}: write the whole path")
        for file in named[:1]:
            if found.setdefault(file, row) is not row:
                row.report(problems, f"is listed{found[file].in_row} already")
            for text in filter(None, map(problem, range(len(names)), row.cells)):
                row.report(problems, text)

    for row in rows:
        written = [next(filter(os.path.lexists, (place / row.file for place in pair)), None) for pair in places]
        take(row, [os.path.realpath(path) for path in written if path is not None])
    if len(found) < len(files):
        # A search walks the folders. What has a row already keeps it.
        taken = {row.number for row in found.values()}
        indices = [file_names.FileIndex(folder) for folder in searched]
        for row in rows:
            if row.number not in taken:
                take(row, _searched(indices, row.file))
        for index in indices:
            wrong = index.check_guesses()
            for row in found.values():
                if row.file in wrong:
                    row.report(problems, wrong[row.file])
    problems.raise_any()
    return found


def _searched(indices: Iterable[file_names.FileIndex], name: str) -> list[str]:
    """The paths that a name means in folders, with all links resolved."""
    paths = []
    for index in indices:
        # A table may name more files than are predicted, and files of another folder.
        with contextlib.suppress(ProblemError):
            paths.append(os.path.realpath(index.find(name)))
    return paths

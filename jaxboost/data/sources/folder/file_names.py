"""Finds the files that a table names, also if another system or program wrote the names in another form."""

import collections
import functools
import logging
import os
import pathlib
import re
from collections.abc import Sequence

from jaxboost.data.problems import ProblemError
from jaxboost.data.sources.folder import cell_values
from jaxboost.data.walk import Listing, is_machine_made, printable, some, unreadable, walk

IMAGES = "images"
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")

logger = logging.getLogger(__name__)


def relative(folder: pathlib.Path, files: Sequence[str]) -> list[str]:
    """Returns the names of a table with absolute paths made relative.

    They become relative to images/ in the folder if there is one and it holds the file, otherwise to the folder. Paths
    outside of the folder stay unchanged.
    """
    if not any(file.startswith("/") for file in files):
        return list(files)
    base = base_of(folder)
    homes = [(os.path.abspath(home), os.path.realpath(home)) for home in dict.fromkeys((base, folder))]
    real = functools.cache(os.path.realpath)

    def name(file: str) -> str:
        path = os.path.normpath(file)
        if not file.startswith("/") or ".." in file.split("/"):
            return file
        parent, last = os.path.split(path)
        for text, whole in homes:
            for candidate, start in ((path, text), (path, whole), (os.path.join(real(parent), last), whole)):
                if candidate.startswith(start.rstrip("/") + "/"):
                    found = candidate[len(start.rstrip("/")) + 1 :]
                    # Not if the same name below images/ is another file.
                    return file if start not in homes[0] and os.path.lexists(base / found) else found
        return file

    return [name(file) for file in files]


def base_of(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder that is searched first for the files of a table: images/ if it exists, else the folder."""
    return folder / IMAGES if os.path.isdir(folder / IMAGES) else folder


class FileIndex:
    """The files of a folder, by the names that a table gives them.

    A name is looked for as written, first below images/ and then below the folder. If it is not there, other forms are
    tried: with / in place of the backslashes of Windows, without a drive, in another letter case, in another Unicode
    normal form, and with other blanks. Such a name is accepted if it means exactly one file.
    """

    def __init__(self, folder: pathlib.Path, skip: pathlib.Path | None = None):
        """Prepares the index of `folder`; the folder `skip` is not walked."""
        self._folder, self._skip = folder, skip
        self.base = base_of(folder)
        self._guessed: list[str] = []
        # Start of a path that was cut off -> names.
        self._cut: dict[str, list[str]] = collections.defaultdict(list)

    @functools.cached_property
    def listing(self) -> Listing:
        """The files below `base`."""
        return walk(self.base, skip=self._skip)

    @functools.cached_property
    def _whole(self) -> Listing:
        return self.listing if self.base == self._folder else walk(self._folder, skip=self._skip)

    @functools.cached_property
    def _by_form(self) -> dict[str, list[pathlib.Path]]:
        """Common form of all spellings of a name -> paths; names are relative to the base, and to the folder."""
        forms: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        for listing in (self.listing,) if self._whole is self.listing else (self.listing, self._whole):
            for name, path in listing.files.items():
                forms[_form(name)].append(path)
        return forms

    @functools.cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """Last part of a name, with and without its extension -> names: for messages."""
        ends: dict[str, list[str]] = collections.defaultdict(list)
        for name in self.listing.files:
            last = _form(name).rpartition("/")[2]
            for end in {last, last.partition(".")[0]}:
                ends[end].append(name)
        return ends

    def find(self, name: str) -> pathlib.Path:
        """Returns the file that the table means with `name`.

        Raises:
          ProblemError: there is no such file, several can be meant, or it cannot be read.
        """
        if _WINDOWS.match(name):
            return self._without_drive(name)
        if os.path.isabs(name):
            return self._absolute(name)
        tidy = pathlib.PurePosixPath(name).as_posix()
        if ".." in tidy.split("/"):
            raise ProblemError(f"is not below {self._folder}: write its path without ..")
        if (path := self._as_written(tidy)) is not None:
            return path
        forms = self._by_form.get(_form(tidy), [])
        if len(forms) == 1:
            self._guessed.append(name)
            return forms[0]
        if forms:
            raise ProblemError(f"can mean {_named(forms, self._folder)}: write it as the file is named")
        raise ProblemError(f"not found in {self.base}{self._hint(tidy)}")

    def check_guesses(self) -> dict[str, str]:
        """Warns of names that were found in another form. Call it after all calls of `find`.

        Returns:
          Name -> problem, for names that were found by the end of their path. They are a problem if different
          beginnings were cut off, because it is then not known which of these is this folder.
        """
        wrong = {}
        if len(self._cut) > 1:
            starts = some([repr(start) for start in sorted(self._cut)])
            text = f"it is not clear which of {starts} is {self._folder}: write the paths as they are below that folder"
            wrong = {name: text for names in self._cut.values() for name in names}
        for start, names in self._cut.items():
            if not wrong:
                logger.warning(
                    "%d files of the table have paths below %r, which is taken to be this folder", len(names), start
                )
        if self._guessed:
            logger.warning(
                "%d files are written differently in the table (letter case, blanks, backslashes or Unicode form): %s",
                len(self._guessed),
                some(self._guessed),
            )
        return wrong

    def _as_written(self, name: str) -> pathlib.Path | None:
        if (found := self.listing.files.get(name)) is not None:
            return found
        if is_machine_made(name):
            raise ProblemError("is a file that a system made, such as a thumbnail: leave its row out")
        # Hidden files, and files below a link to a folder that is read under another name.
        for path in (self.base / name, self._folder / name):
            if os.path.lexists(path):
                if text := unreadable(path):
                    raise ProblemError(text)
                return path
        for listing in (self.listing, self._whole):
            if name in listing.broken:
                raise ProblemError(listing.broken[name])
            if self.base != self._folder and name in listing.files:
                return listing.files[name]
        return None

    def _absolute(self, name: str) -> pathlib.Path:
        # `relative` left this path absolute: it is ambiguous, or outside of the folder.
        path = pathlib.Path(os.path.normpath(name))
        whole = self._folder.resolve()
        if ".." not in name.split("/") and path.parent.resolve().is_relative_to(whole):
            if text := unreadable(path):
                raise ProblemError(text)
            return path
        matches = self._tails(name.split("/")[1:])
        step = f", such as {matches[1][0]}" if matches else ""
        raise ProblemError(f"is not below {self._folder}: write its path below that folder{step}")

    def _without_drive(self, name: str) -> pathlib.Path:
        parts = [part for part in re.split(r"[\\/]+", name) if part]
        matches = self._tails(parts[1:])
        if matches is None:
            raise ProblemError(f"not found in {self.base}: write its path below that folder")
        start, paths = "\\".join(parts[: 1 + matches[0]]), matches[1][1]
        if len(paths) > 1:
            raise ProblemError(f"can mean {_named(paths, self._folder)}: write its path below {self.base}")
        self._cut[start.lower()].append(name)
        return paths[0]

    def _tails(self, parts: Sequence[str]) -> tuple[int, tuple[str, list[pathlib.Path]]] | None:
        """Returns the longest end of a path that names files: how many parts are cut off, the end, and the files."""
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if paths := self._by_form.get(_form(tail)):
                return start, (tail, paths)
        return None

    def _hint(self, name: str) -> str:
        """Returns the end of a message: the files that may be meant."""
        last = _form(name).rpartition("/")[2]
        for end in dict.fromkeys((last, last.partition(".")[0])):
            if found := self._by_end.get(end):
                return f": is {' or '.join(found[:3])} meant?"
        if escaped := [found for found in self.listing.files if "\\x" in found]:
            return f"; it has names that are not UTF-8, such as {escaped[0]}: rename them, with convmv for example"
        return ""


def _form(name: str) -> str:
    """Returns the common form of all spellings of a name."""
    if not name.isascii():
        name = cell_values.clean(name)
    parts = (" ".join(part.split()) for part in name.replace("\\", "/").casefold().split("/"))
    return "/".join(part for part in parts if part not in ("", "."))


def _named(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> str:
    return " or ".join(printable(os.path.relpath(path, folder)) for path in paths[:3])

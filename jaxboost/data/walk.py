"""Lists a folder: every regular file once, and everything that is left out, with the reason.

Training and prediction list folders only with this module, so both find the same files. Links are followed. A
folder that has several names is read once: under its own name if it has one below the root, otherwise under the first
link. A loop of links therefore ends. Only names are read: no file is opened, and only links need a further system call.
"""

import collections
import dataclasses
import errno
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from jaxboost.errors import LISTED
from jaxboost.io import irregular

ABSENT = "is not there"
HIDDEN = "hidden files and folders"
SYSTEM = "thumbnails and other files that systems make"
AGAIN = "links to files and folders that are read under another name"
LOOP = "links that lead back to a folder that contains them"
UNREAD = "links and other entries that cannot be read"
# Folders that NAS devices, macOS and Windows make, in lower case. Hidden ones start with a dot and need no entry.
MACHINE_MADE = frozenset(
    (
        *("@eadir", "@tmp", "@sharebin", "@synoresource", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("@transcode", "@quarantine", "recycle bin", "$recycle.bin", "recycler", "recycled", "lost+found"),
        *("system volume information", "__macosx", "network trash folder", "temporary items", "__pycache__"),
    )
)
_THUMBNAILS = frozenset(("thumbnails", "_thumbnails"))
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "dicomdir"))
_SYSTEM_STARTS = ("synophoto_thumb_", "synofile_thumb_", "~$")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HEAD = 1024
_LFS = (b"version https://git-lfs", b"version https://hawser")
_ANNEX = re.compile(rb"^(/|(\.\./)*\.git/)annex/objects/")
_WEB_PAGE = (b"<!doctype html", b"<html", b"<?xml")


@dataclasses.dataclass
class Listing:
    """The result of `walk`. A name is a path relative to the folder, with "/" between its parts, made `printable`.

    Attributes:
      files: name -> path, sorted part by part.
      folders: names of the folders that were read.
      same_folders: name of a folder -> the other name under which it is read.
      broken: name -> problem: a link to nothing, a file that was not fetched, a pipe, or two equal names.
      unreadable: name of a folder -> why it cannot be listed.
      left_out: reason -> names; names of folders end with "/".
      links: names of the files that are links.
    """

    files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    folders: list[str] = dataclasses.field(default_factory=list)
    same_folders: dict[str, str] = dataclasses.field(default_factory=dict)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    links: set[str] = dataclasses.field(default_factory=set)
    _parents: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)

    def real(self, name: str) -> str:
        """Returns the path of the file `name` with all links resolved."""
        path = self.files[name]
        if name in self.links:
            return os.path.realpath(path)
        if path.parent not in self._parents:
            self._parents[path.parent] = os.path.realpath(path.parent)
        return os.path.join(self._parents[path.parent], path.name)

    def repeated(self, names: Iterable[str]) -> dict[str, str]:
        """Finds links among the files `names` whose target is also among them: link -> name of the target."""
        # The file itself comes before links to it.
        ordered = sorted(names, key=lambda name: name in self.links)
        if not ordered or ordered[-1] not in self.links:
            return {}
        first_of: dict[str, str] = {}
        firsts = {name: first_of.setdefault(self.real(name), name) for name in ordered}
        return {name: first for name, first in firsts.items() if name != first}


def walk(folder: pathlib.Path, *, skip: pathlib.Path | None = None) -> Listing:
    """Lists everything below `folder`, with any extension.

    Args:
      folder: the folder, which exists.
      skip: a folder below it that is not walked, such as the folder of masks.

    Returns:
      The files and folders, and the names that are left out.
    """
    listing = Listing()
    skipped = _identity(skip) if skip is not None and os.path.exists(skip) else None
    around = {_identity(parent) for parent in folder.resolve().parents}
    seen: dict[tuple[int, int], str] = {}
    # Folders behind links come last, so that a folder below the root is read under its own name.
    linked = collections.deque([("", folder)])
    while linked:
        inner = collections.deque([linked.popleft()])
        while inner:
            name, path = inner.popleft()
            try:
                identity = _identity(path)
                with os.scandir(path) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                listing.unreadable[name] = f"the folder cannot be listed ({error.strerror}): check its permissions"
                continue
            if name and identity == skipped:
                continue
            first = seen.setdefault(identity, name)
            if identity in around or (first != name and (not first or name.startswith(f"{first}/"))):
                listing.left_out[LOOP].append(f"{name}/")
                continue
            if first != name:
                listing.same_folders[name] = first
                continue
            listing.folders.append(name)
            for below, entry in _entries(name, entries, listing):
                (linked if entry.is_symlink() else inner).append((below, pathlib.Path(entry.path)))
    listing.files = {name: listing.files[name] for name in sorted(listing.files, key=_parts)}
    listing.folders.sort(key=_parts)
    return listing


def _entries(folder: str, entries: Sequence[os.DirEntry], listing: Listing) -> Iterable[tuple[str, os.DirEntry]]:
    """Sorts the entries of one folder into `listing` and yields the folders to read, with their names."""
    present = {entry.name for entry in entries}
    for entry in entries:
        name = printable(f"{folder}/{entry.name}" if folder else entry.name)
        if missing := _not_here(entry.name, present):
            listing.broken[printable(f"{folder}/{missing[0]}" if folder else missing[0])] = missing[1]
            continue
        if reason := _left_out(entry.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            listing.left_out[reason].append(f"{name}/" if is_folder else name)
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        # Such as a link that leads to itself.
        except OSError:
            is_folder = is_file = False
        if is_folder:
            yield name, entry
        elif not is_file:
            listing.broken[name] = unreadable(entry.path)
        elif name in listing.files or name in listing.broken:
            listing.files.pop(name, None)
            listing.broken[name] = "two files have this name once it is written in UTF-8: rename one"
        else:
            listing.files[name] = pathlib.Path(entry.path)
            if entry.is_symlink():
                listing.links.add(name)


def _left_out(name: str) -> str:
    """Returns why an entry of this name is left out, "" if it is not."""
    folded = name.lower()
    if folded.startswith("."):
        # macOS writes a resource fork for every file on disks of other systems: the user did not hide these files.
        return SYSTEM if folded.startswith(("._", ".appledouble", ".ds_store")) else HIDDEN
    if folded in MACHINE_MADE or folded in _THUMBNAILS or folded in _SYSTEM_FILES:
        return SYSTEM
    return SYSTEM if folded.startswith(_SYSTEM_STARTS) else ""


def is_machine_made(name: str) -> bool:
    """Returns whether a file of this name (with its folders) was made by a system, not by the user."""
    *folders, file = name.lower().split("/")
    return any(part in MACHINE_MADE for part in folders) or file.startswith(("._", *_SYSTEM_STARTS))


def _not_here(name: str, present: Collection[str]) -> tuple[str, str] | None:
    """Returns the name of the file that the placeholder `name` stands for, and how to fetch it; otherwise None."""
    if name.endswith(".dvc") and len(name) > 4 and name[:-4] not in present:
        return name[
            :-4
        ], f"is tracked by DVC and was not fetched: fetch it with `dvc pull`, or remove {printable(name)}"
    if name.startswith(".") and name.endswith(".icloud") and name[1:-7] not in present:
        return name[1:-7], "is in iCloud and not on this machine: download it in the Finder"
    return None


def unreadable(path: str | os.PathLike[str]) -> str:
    """Returns why `path` cannot be read as a file, "" if it is a regular file or a link to one."""
    try:
        os.stat(path)
    # The name has a zero byte.
    except ValueError as error:
        return f"cannot be read ({error})"
    except OSError as error:
        if not os.path.islink(path):
            # Other errors, such as a folder that may not be entered, do not say whether it is there.
            return ABSENT if error.errno in (errno.ENOENT, errno.ENOTDIR) else f"cannot be read ({error.strerror})"
        target = os.readlink(path)
        step = "restore what it leads to, or remove the link"
        if "annex/objects/" in target:
            step = "fetch it with `git annex get` or `datalad get`"
        elif ".dvc/" in target:
            step = "fetch it with `dvc pull`"
        return f"is a link to {printable(target)}, which cannot be reached ({error.strerror}): {step}"
    kind = irregular(path)
    return f"is {kind}: give a regular file" if kind else ""


def state_of(path: str | os.PathLike[str]) -> str:
    """Text that is another one when a file has changed: its size, and the times of its content and of its entry.

    No program can set the time of the entry (ctime), so a file is noticed too that was replaced by one of the same
    size and modification time. The number of the file (inode) is left out: some network file systems give new ones at
    each start.

    Returns:
      "" if the file cannot be examined.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def not_fetched(path: pathlib.Path) -> str:
    """Returns why a file that no reader accepts does not have its real content; "" if it has.

    Git LFS and git-annex leave a small text in place of a file that was not fetched. Servers answer a download that
    fails with a web page.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    if head.startswith(_LFS):
        return "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"
    if _ANNEX.match(head):
        return "is a pointer of git-annex, not the file itself: fetch it with `git annex get`"
    if head.lstrip().lower().startswith(_WEB_PAGE):
        return "is a web page or the message of a server, not an image: download it again"
    return ""


def printable(name: str | os.PathLike[str]) -> str:
    r"""Returns a file name as one line of text that can be encoded in UTF-8.

    Bytes that are not UTF-8 and control characters become `\xNN`; every other name stays unchanged.
    """
    text = os.fspath(name)
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    # Python decodes a byte that is not UTF-8 as U+DC00 plus the byte.
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def some(names: Sequence[str]) -> str:
    """Returns the first dozen names as text, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def summary(left_out: Mapping[str, Sequence[str]]) -> str:
    """Returns one line for the log: how many files were left out for each reason, and the first names; "" for none."""
    parts = [f"{reason}: {len(names)} ({some(sorted(names))})" for reason, names in left_out.items() if names]
    return f"left out: {'; '.join(parts)}" if parts else ""


def _identity(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _parts(name: str) -> list[str]:
    return name.split("/")

"""Notes in the folder of a store: JSON that takes long to find out, and depends on the rows or their files."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxboost.io import replacing

# Of all files of notes, also of those that a killed process left.
FILES = ("note-*.json", ".note-*.part")


class Notes:
    """The notes in a folder. One that is damaged, or cannot be written, is found out again."""

    def __init__(self, folder: pathlib.Path | None, *, renew: bool = False):
        """Reads nothing yet.

        Args:
          folder: of the notes; None: none are kept.
          renew: whether existing ones are not used.
        """
        self._folder, self._renew = folder, renew

    def updated(self, name: str, of: str, update: Callable[[Any], Any]) -> Any:
        """JSON that was found out about all rows together.

        Args:
          name: name of the note.
          of: what it depends on; a note of anything else is not used, and replaced.
          update: finds it out; called with what was found out before, None if that is not known. It returns the same
            object if that is still right.
        """
        before = self._read(name, of)
        value = update(before)
        if value is not before:
            self._write(name, of, value)
        return value

    def facts(
        self, name: str, of: str, wanted: Mapping[str, str], make: Callable[[list[str]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """JSON about each key, kept in a note, so that only what changed is found out again.

        Args:
          name, of: of the note.
          wanted: key -> stamp.
          make: called with the keys that are missing; may leave some out.

        Returns:
          key -> JSON.
        """
        known = self._read(name, of) or {}
        found = {key: known[key][1] for key, stamp in wanted.items() if key in known and known[key][0] == stamp}
        if missing := [key for key in wanted if key not in found]:
            found |= make(missing)
            self._write(name, of, {key: [wanted[key], value] for key, value in found.items()})
        return found

    def _read(self, name: str, of: str) -> Any:
        if self._folder is not None and not self._renew:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads((self._folder / f"note-{name}.json").read_bytes())
                if content["of"] == of and content["sha256"] == _digest(content["value"]):
                    return content["value"]
        return None

    def _write(self, name: str, of: str, value: Any) -> None:
        if self._folder is not None and self._folder.is_dir():
            content = json.dumps({"of": of, "sha256": _digest(value), "value": value})
            with contextlib.suppress(OSError), replacing(self._folder / f"note-{name}.json") as temporary:
                temporary.write_text(content)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""What a user says of the classes of a task: prompts, and what CoOp calls them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.convert.manifest_types import MAX_CLASSES, MAX_PROMPTS
from jaxboost.errors import UserError

# Entries of a class in the file of prompts, if it has another form than a list.
_PROMPTS, _CALLED = "prompts", "called"
_FORM = 'give {"CLASS": ["a prompt", ...], ...}'
_MAX_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What the user says of one class: see `manifest_types.ClassText`."""

    prompts: tuple[str, ...]
    called: str


def read(path: pathlib.Path) -> dict[str, Prompts]:
    """The prompts in a JSON file; see `parse`."""
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path} with prompts: {_FORM}")
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} has more than {_MAX_BYTES >> 20} MiB: {_FORM}")

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            name = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
            raise UserError(f"{path} names {name!r} twice: give all prompts of a class in one list")
        return found

    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): {_FORM}") from error
    return parse(content, str(path))


def parse(content: Any, where: str) -> dict[str, Prompts]:
    """Class name -> its prompts; see `class_prompts.convert_text`.

    Args:
      content: what the user gave.
      where: where it is from, for messages.

    Raises:
      UserError: it has another form, or a class has no prompt or too many.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: there are no classes: {_FORM}")
    if len(content) > MAX_CLASSES:
        raise UserError(f"{where}: there are more than {MAX_CLASSES} classes: give fewer")
    found = {}
    for name, entry in content.items():
        given = entry if isinstance(entry, Mapping) else {_PROMPTS: entry}
        texts, called = given.get(_PROMPTS), given.get(_CALLED, str(name).replace("_", " "))
        if unknown := sorted(map(str, set(given) - {_PROMPTS, _CALLED})):
            raise UserError(f"{where}: class {name!r} has the entry {unknown[0]!r}, not {_PROMPTS} or {_CALLED}")
        if texts in (None, "", [], ()):
            raise UserError(f"{where}: class {name!r} has no prompt: give at least one")
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise UserError(f"{where}: the prompts of class {name!r} are {texts!r:.60}: give a list, even of one")
        if len(texts) > MAX_PROMPTS:
            raise UserError(f"{where}: class {name!r} has more than {MAX_PROMPTS} prompts: give fewer")
        for one in (name, called, *texts):
            if not isinstance(one, str) or not one.strip() or len(one) > 1024:
                raise UserError(f"{where}: class {name!r} has a text that is empty, too long or no text: {one!r:.60}")
        found[name] = Prompts(tuple(texts), called)
    return found

"""manifest.json: the description of a converted folder. The folder may come from anybody, so every entry is checked."""

import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from jaxboost import io, schema
from jaxboost.convert.formats import kinds
from jaxboost.convert.manifest_types import (
    CHECKED,
    FORMAT_VERSION,
    EncoderManifest,
    Manifest,
    QFormerManifest,
    QuestionManifest,
    TextManifest,
)
from jaxboost.convert.tables.parts import LLAMA, QFORMER, QUESTION, TEXT, VISION
from jaxboost.errors import UserError

MANIFEST = "manifest.json"
CHECKSUM = "checksum"

AnyManifest = Manifest | EncoderManifest | TextManifest | QuestionManifest | QFormerManifest

# Kind of source -> the name of the converted folder in messages, and what says in commands what is converted. --part
# is for a BLIP-2, and right for every source.
_KINDS = {
    LLAMA: ("block", "--part block --layers LAYERS"),
    VISION: ("vision encoder", "--part encoder"),
    TEXT: ("text encoder", "--prompts FILE"),
    QUESTION: ("question", "--question TEXT --answers ANSWERS"),
    QFORMER: ("Q-Former", "--part qformer"),
}
_FIX = "convert again"


def read_block(path: str | os.PathLike) -> Manifest:
    """The manifest of the block at `path`.

    Raises:
      UserError: there is no block, or its manifest is damaged, changed or of another format version.
    """
    return _read(path, LLAMA)


def read_encoder(path: str | os.PathLike) -> EncoderManifest:
    """The manifest of the vision encoder at `path`.

    Raises:
      UserError: see `read_block`.
    """
    return _read(path, VISION)


def read_text(path: str | os.PathLike) -> TextManifest:
    """The manifest of the text encoder at `path`.

    Raises:
      UserError: see `read_block`.
    """
    return _read(path, TEXT)


def read_question(path: str | os.PathLike) -> QuestionManifest:
    """The manifest of the question at `path`.

    Raises:
      UserError: see `read_block`.
    """
    return _read(path, QUESTION)


def read_qformer(path: str | os.PathLike) -> QFormerManifest:
    """The manifest of the Q-Former at `path`.

    Raises:
      UserError: see `read_block`.
    """
    return _read(path, QFORMER)


def check(manifest: AnyManifest) -> None:
    """Raises UserError if a manifest, once written, could not be read again."""
    entries = _entries_of(manifest)
    schema.parse(CHECKED[manifest.kind], entries, where=manifest.source, fix="choose another checkpoint")


def other_norm(part: Manifest | EncoderManifest, key: str, norms: Mapping[str, str]) -> str:
    """Why a part is not of the checkpoint whose norm another folder remembers, for messages; "" if it is.

    Args:
      part: a converted block or encoder.
      key: of its final norm.
      norms: dtype -> fingerprint of the checkpoint's norm, converted to this dtype.
    """
    if key not in part.sha256:
        return "was converted without its final norm"
    return "" if part.sha256[key] == norms.get(part.dtype) else "has other weights than that of its checkpoint"


def to_text(manifest: AnyManifest) -> str:
    """The text of the file: the entries and their checksum, which shows if a constant was changed."""
    entries = _entries_of(manifest)
    return json.dumps(entries | {CHECKSUM: _checksum(entries)}, indent=2) + "\n"


def kind_at(path: str | os.PathLike) -> str:
    """The kind of the folder at `path` for messages, a name in _KINDS; "block" also if it is unknown."""
    try:
        return _KINDS[io.read_json(pathlib.Path(path) / MANIFEST)["kind"]][0]
    except (OSError, ValueError, LookupError, TypeError):
        return _KINDS[LLAMA][0]


def command(source: str, layers: str, out: str | os.PathLike, *flags: str) -> str:
    """The command that converts, for messages."""
    return _command(source, f"--layers {layers}", out, *flags)


def command_of_block(layers: str, out: str | os.PathLike) -> str:
    """The command that converts layers of an LLM, for messages."""
    return _command("SOURCE", f"--part block --layers {layers}", out)


def _command(source: str, what: str, out: str | os.PathLike, *flags: str) -> str:
    return " ".join(["jaxboost convert --source", source, what, "--out", str(out), *flags])


def _entries_of(manifest: AnyManifest) -> dict[str, Any]:
    entries = dataclasses.asdict(manifest)
    if isinstance(manifest, Manifest):
        entries["config"] = manifest.config.entries()
    return {name: value for name, value in entries.items() if value is not None}


def _read(path: str | os.PathLike, kind: str) -> Any:
    return schema.parse(CHECKED[kind], _entries(path, kind), where=str(pathlib.Path(path) / MANIFEST), fix=_FIX)


def _entries(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The entries of the manifest at `path`; only kind, version and checksum are verified.

    Raises:
      UserError: there is no such folder, it holds the other kind, or its manifest is damaged, changed or of another
        format version.
    """
    file, (wanted, what) = pathlib.Path(path) / MANIFEST, _KINDS[kind]
    if not os.path.isfile(file):
        make = _command("SOURCE", what, path)
        raise UserError(f"there is no {wanted} at {path} (no {MANIFEST}): make one with `{make}`")
    fields = _json(file)
    found, version = fields.get("kind", LLAMA), fields.get("format_version")
    if not isinstance(found, str) or found not in _KINDS:
        raise UserError(f"{file} is damaged or of another version (kind: {found!r:.40}): {_FIX}")
    if found != kind:
        make = _command("SOURCE", what, "DIR")
        raise UserError(
            f"{path} holds a {_KINDS[found][0]}, not a {wanted}: name another folder, or make one with `{make}`"
        )
    if isinstance(version, bool) or version != FORMAT_VERSION:
        fix = f"{_FIX} with `{_again(path, fields)}`" if version == 1 and version is not True else _FIX
        raise UserError(f"{path} has the format version {version!r:.40}, this is {FORMAT_VERSION}: {fix}")
    if fields.pop(CHECKSUM, None) != _checksum(fields):
        raise UserError(f"{file} was changed after the conversion (its checksum is of other entries): {_FIX}")
    return fields


def _again(path: str | os.PathLike, fields: Mapping[str, Any]) -> str:
    """The command that made a folder, from those entries of its unverified manifest that can be read."""
    source, numbers = fields.get("source"), fields.get("layers")
    if not isinstance(source, str) or not 0 < len(source) <= 1024 or not source.isprintable():
        source = "SOURCE"
    if source.startswith("package:"):
        # The manifest names the file in the package too.
        source = source.partition("/")[0]
    layers = "all" if fields.get("kind") == VISION else "LAYERS"
    if (
        isinstance(numbers, list)
        and 0 < len(numbers) <= 1024
        and all(type(n) is int and 0 <= n < 1024 for n in numbers)
    ):
        layers = "all" if len(numbers) == fields.get("layers_in_source") else ",".join(map(str, numbers))
    flags = ["--dtype bfloat16"] * (fields.get("dtype") == "bfloat16")
    flags += ["--nofinal_norm"] * (fields.get("final_norm") is False)
    return command(shlex.quote(source), layers, shlex.quote(str(path)), *flags, "--overwrite")


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        kinds.refuse_known(str(file), kinds.head_of(file))
        fields = io.read_json(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged or of another version ({error}): {_FIX}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file} is damaged or of another version (it holds no JSON object): {_FIX}")
    return fields


def _checksum(entries: Mapping[str, Any]) -> str:
    try:
        return io.json_sha256(entries)
    except (ValueError, TypeError, RecursionError):
        return ""

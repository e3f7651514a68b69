"""manifest.json: what a converted folder says that it holds. It may come from elsewhere: nothing in it is trusted."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxboost import io, schema
from jaxboost.convert import file_kinds
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CHECKSUM = "checksum"

# What a manifest can describe -> its name for users, and what they give as --layers for it. A block's manifest has no
# "kind".
BLOCK, VISION = "llama", "vision"
_KINDS = {BLOCK: ("block", "LAYERS"), VISION: ("vision encoder", "all")}
_FIX = "convert again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a block holds.

    Attributes:
      format_version: version of this format.
      source: where the weights come from: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, meta, gguf or hub.
      layers: numbers of the layers, in the order in which they are used.
      layers_in_source: how many layers the source has.
      final_norm: whether the norm after the source's last layer is there too.
      dtype: float32 or bfloat16.
      config: shape and constants of the layers.
      sha256: fingerprint of each layer (key: its number) and of the final norm (key: "final_norm").
      jaxboost_version: version that converted.
    """

    format_version: int = FORMAT_VERSION
    source: str
    source_format: str
    layers: tuple[int, ...]
    layers_in_source: int
    final_norm: bool
    dtype: str
    config: LlamaConfig
    sha256: Mapping[str, str]
    jaxboost_version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderManifest:
    """What a converted vision encoder holds.

    Attributes:
      format_version: version of this format.
      kind: what tells it from a block.
      source: where the weights come from: the name of a folder or file, or id@commit on the hub.
      source_format: safetensors, torch, onnx or hub.
      dtype: float32 or bfloat16.
      arguments: of `models.vit.ViT`, all that the weights decide; "registers" only where there are some.
      image_size: side of the images that the stored positions are for, in pixels.
      resizing: how positions become those of another size, one of `positions.RESIZINGS`.
      sha256: fingerprint of each part: "embedding", the number of each block, and "norm", the final LayerNorm.
      jaxboost_version: version that converted.
    """

    format_version: int = FORMAT_VERSION
    kind: str = VISION
    source: str
    source_format: str
    dtype: str
    arguments: Mapping[str, Any]
    image_size: int
    resizing: str = "bicubic"
    sha256: Mapping[str, str]
    jaxboost_version: str


def read_block(path: str | os.PathLike) -> Manifest:
    """The manifest of the block at `path`.

    Raises:
      UserError: there is no block, or its manifest is damaged or changed, or has another format version.
    """
    from jaxboost.convert import manifest_types

    fields = schema.parse(
        manifest_types.Block, _entries(path, BLOCK), where=str(pathlib.Path(path) / MANIFEST), fix=_FIX
    ).model_dump()
    config = fields.pop("config")
    factors = config.pop("rope_factors")
    config = LlamaConfig(**config, rope_factors=None if factors is None else tuple(factors))
    return Manifest(**fields | {"layers": tuple(fields["layers"]), "config": config})


def read_encoder(path: str | os.PathLike) -> EncoderManifest:
    """The manifest of the vision encoder at `path`.

    Raises:
      UserError: see `read_block`.
    """
    from jaxboost.convert import manifest_types

    fields = schema.parse(
        manifest_types.Encoder, _entries(path, VISION), where=str(pathlib.Path(path) / MANIFEST), fix=_FIX
    ).model_dump()
    fields["arguments"] = {name: value for name, value in fields["arguments"].items() if value is not None}
    return EncoderManifest(**fields)


def check(manifest: Manifest | EncoderManifest) -> None:
    """Raises UserError where a manifest that is to be written could not be read again."""
    from jaxboost.convert import manifest_types

    kind = manifest_types.Block if isinstance(manifest, Manifest) else manifest_types.Encoder
    schema.parse(kind, dataclasses.asdict(manifest), where=manifest.source, fix="choose another checkpoint")


def to_text(manifest: Manifest | EncoderManifest) -> str:
    """What is written: the entries, and a checksum of them, so that a changed constant is not taken for the model's."""
    entries = dataclasses.asdict(manifest)
    return json.dumps(entries | {CHECKSUM: _checksum(entries)}, indent=2) + "\n"


def kind_at(path: str | os.PathLike) -> str:
    """The users' name for what is at `path`: "vision encoder", or "block", also where its manifest is broken."""
    try:
        return _KINDS[io.read_json(pathlib.Path(path) / MANIFEST)["kind"]][0]
    except (OSError, ValueError, LookupError, TypeError):
        return _KINDS[BLOCK][0]


def _entries(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The entries of the manifest at `path`, unchecked but for kind, version and checksum.

    Raises:
      UserError: there is no such folder, it holds the other kind, or its manifest is damaged, changed or of another
        format version.
    """
    file, (wanted, layers) = pathlib.Path(path) / MANIFEST, _KINDS[kind]
    command = f"`python convert_weights.py --source SOURCE --layers {layers} --out"
    if not file.is_file():
        raise UserError(f"there is no {wanted} at {path} (no {MANIFEST}): make one with {command} {path}`")
    fields = _json(file)
    found, version = fields.get("kind", BLOCK), fields.get("format_version")
    if not isinstance(found, str) or found not in _KINDS:
        raise UserError(f"{file} is damaged or of another version (kind: {found!r:.40}): {_FIX}")
    if found != kind:
        raise UserError(
            f"{path} holds a {_KINDS[found][0]}, not a {wanted}: name another folder, or make one with {command} DIR`"
        )
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise UserError(f"{path} has the format version {version!r:.40}, this is {FORMAT_VERSION}: {_FIX}")
    # Blocks of the first release have none.
    checksum = fields.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(fields):
        raise UserError(f"{file} was changed after the conversion (its checksum is of other entries): {_FIX}")
    return fields


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        file_kinds.refuse_known(str(file), file_kinds.head_of(file))
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
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return ""

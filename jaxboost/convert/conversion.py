"""Converts decoder layers of an LLM's checkpoint into a block, a whole vision encoder, or BLIP-2's Q-Former."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

import jaxboost
from jaxboost import io, outputs
from jaxboost.convert import manifests, part_file, writer
from jaxboost.convert.formats import merging
from jaxboost.convert.manifests import EncoderManifest, Manifest, QFormerManifest
from jaxboost.convert.part_file import DTYPES
from jaxboost.convert.sources import merged, open_source
from jaxboost.convert.tables import blip2
from jaxboost.convert.tables.hints import Hints
from jaxboost.convert.tables.parts import LLAMA, QFORMER, VISION
from jaxboost.convert.tables.qformer import QFormerSource
from jaxboost.convert.tables.shapes import VIT
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES

# Kind of source -> the type of its manifest.
_MANIFESTS = {LLAMA: Manifest, VISION: EncoderManifest, QFORMER: QFormerManifest}

logger = logging.getLogger(__name__)


def convert(
    source: str | os.PathLike[str],
    layers: str | int | Sequence[int],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    final_norm: bool = True,
    overwrite: bool = False,
    hints: Hints | None = None,
    adapter: str | os.PathLike[str] | None = None,
    part: str | None = None,
) -> Manifest | EncoderManifest | QFormerManifest:
    """Converts decoder layers of a checkpoint into a block, or a vision encoder, or the Q-Former of a BLIP-2.

    Only the needed tensors are read, and only one at a time is in memory, beside those of one layer that hold several
    weights each (Phi-3, GPT-2). No device is needed. For a vision encoder the log names the tensors that are not read,
    and the values that were assumed.

    Example:
      >>> convert("huggyllama/llama-7b", 31, "blocks/llama-7b")
      >>> convert("google/vit-base-patch16-224-in21k", "all", "blocks/vit-b16")
      >>> convert("Salesforce/blip2-opt-2.7b", "all", "blocks/blip2-qformer", part="qformer")

    Args:
      source: see `sources.open_source`.
      layers: 31, (15, 31), or text as `tables.llama.parse_layers` reads it: "-1" is the last layer; "all" for a vision
        encoder and for a Q-Former.
      out: folder of the result; it appears only when it is complete.
      dtype: "float32" (exact for float32, float16 and bfloat16 sources) or "bfloat16".
      final_norm: whether to take the norm after the source's last layer too; a vision encoder always has it.
      overwrite: whether an existing block or vision encoder may be replaced.
      hints: what the user states about a vision encoder in timm's names.
      adapter: folder or hub id of a LoRA adapter of this LLM, as peft saves it, that is merged; None: none. See
        `merging`.
      part: of a BLIP-2, which holds several models: "encoder", "qformer" or "block"; None: the source is another one.

    Returns:
      The manifest of the result.

    Raises:
      UserError: the source is not an intact checkpoint of a known kind, or lacks the layers; or `out` exists already.
    """
    if dtype not in DTYPES:
        raise UserError(f"the dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    source, out, stored = os.fspath(source), io.user_path(out), DTYPES[dtype]
    writer.check_free(out, overwrite=overwrite)
    if os.path.isdir(io.user_path(source)) and outputs.is_inside(out, io.user_path(source)):
        raise UserError(f"--out {out} lies in --source {source}: give a folder elsewhere")
    text = str(layers) if isinstance(layers, str | int) else ",".join(map(str, layers))
    if part is not None and part not in blip2.PARTS:
        raise UserError(f"--part {part!r} is not one of {', '.join(blip2.PARTS)}")
    opened = open_source(source, hints, part)
    blip2.check_part(part, opened.kind, source)
    merged_adapter = None
    if adapter is not None:
        opened, merged_adapter = merged(opened, adapter), merging.identity(adapter)
    selection = opened.select(text, final_norm=final_norm)
    if dtype != "float32" and any(name.endswith(".variance") for part in selection.parts for name in part.shapes):
        raise UserError(f"--dtype {dtype}: the running statistics of batch norms need float32: leave it out")
    if dtype != "float32" and opened.kind == QFORMER:
        raise UserError(f"--dtype {dtype}: a Q-Former is trained, and starts from float32: leave it out")
    for note in selection.notes:
        logger.info("%s", note)

    norms = {
        name: {dtype: part_file.fingerprint(read(DTYPES[dtype])) for dtype in DTYPES}
        for name, read in (opened.norms().items() if isinstance(opened, QFormerSource) else ())
    }

    def manifest_of(sha256: Mapping[str, str]) -> Manifest | EncoderManifest | QFormerManifest:
        make: Any = _MANIFESTS[opened.kind]
        given: dict[str, Any] = {"norms": norms} if opened.kind == QFORMER else {"dtype": dtype}
        if merged_adapter is not None:
            given["adapter"] = merged_adapter
        return make(
            source=opened.tensors.source,
            source_format=opened.tensors.source_format,
            sha256=sha256,
            jaxboost_version=jaxboost.__version__,
            **given,
            **selection.constants,
        )

    # Checked before anything is read, so that no manifest is written that no run can open.
    manifests.check(manifest_of(dict.fromkeys((part.key for part in selection.parts), "0" * 64)))
    size = stored.itemsize * sum(part.size for part in selection.parts)
    io.check_free_space(out, size, str(out))
    with (
        writer.writing(out, overwrite=overwrite) as folder,
        tqdm(total=size, unit="B", unit_scale=True, desc="converting", disable=None) as progress,
    ):
        for part in selection.parts:
            folder.add(part, stored, progress.update)
        manifest = manifest_of(folder.sha256)
        folder.finish(manifest)
    return manifest


def summary(manifest: Manifest | EncoderManifest | QFormerManifest, out: str | os.PathLike[str]) -> str:
    """A few lines for the user: what was converted, where it is, and how it is used."""
    size = sum(path.stat().st_size for path in io.user_path(out).rglob("*") if path.is_file())
    pixels = []
    if isinstance(manifest, QFormerManifest):
        shape = manifest.arguments
        layers = f"all {shape['depth']} of a Q-Former with {shape['queries']} queries of width {shape['width']}, for an"
        layers += f" encoder of width {shape['context_width']} and an LLM of width {shape['output_width']}"
        used = f"--config.blip2.qformer={out}"
    elif isinstance(manifest, EncoderManifest):
        if manifest.pixel_mean and manifest.pixel_std:
            values = (("mean", manifest.pixel_mean), ("std", manifest.pixel_std))
            flags = " ".join(f"--config.model.{name}={','.join(f'{each:.9g}' for each in of)}" for name, of in values)
            pixels = [f"pixels  as it was trained: {flags} (images of {manifest.image_size} pixels)"]
        used = f"--config.model.weights={out}"
        if manifest.family == VIT:
            shape = manifest.arguments
            layers = f"all {shape['depth']} of a vision encoder of width {shape['width']}, patch {shape['patch']}"
            # PneumoLLM reads CLS tokens, which an encoder with a pooling has not.
            used += "" if "pooling" in shape else f", for PneumoLLM --config.pneumollm.vision={out}"
        else:
            fitting = [
                name
                for name, row in BACKBONES.items()
                if row.traits.names == manifest.family and not row.differing(manifest.arguments)
            ]
            layers = f"all of a vision encoder, {manifest.family}"
            used += f" --config.model.backbone={fitting[0]}" if fitting else " (no backbone has this size)"
    else:
        numbers = ",".join(map(str, manifest.layers))
        layers = f"{numbers.replace(',', ', ')} of 0 to {manifest.layers_in_source - 1}"
        layers += ", and the final norm" if manifest.final_norm else ""
        used = f"--config.boost.block={out}, for PneumoLLM --config.llama.block={out}"
    return "\n".join(
        [
            f"source  {manifest.source} ({manifest.source_format})",
            f"layers  {layers}",
            f"dtype   {manifest.dtype}",
            f"wrote   {size / 2**20:.1f} MiB to {out}",
            f"use it  {used}",
            *pixels,
        ]
    )

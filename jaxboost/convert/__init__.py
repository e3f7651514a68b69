"""Conversion of LLaMA-family checkpoints into blocks, and of vision encoders into encoders, that the models load."""

import functools
import logging
import math
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

import jaxboost
from jaxboost import outputs
from jaxboost.convert import encoder_names, manifests, names, store, writer
from jaxboost.convert.encoder_names import EncoderSource
from jaxboost.convert.given import Given
from jaxboost.convert.manifests import EncoderManifest, Manifest
from jaxboost.convert.names import FINAL_NORM, Reader
from jaxboost.convert.sources import open_source
from jaxboost.convert.writer import Part
from jaxboost.errors import UserError

logger = logging.getLogger(__name__)


def convert(
    source: str,
    layers_spec: str,
    out: str | pathlib.Path,
    *,
    dtype: str = "float32",
    final_norm: bool = True,
    overwrite: bool = False,
    given: Given | None = None,
) -> Manifest | EncoderManifest:
    """Converts decoder layers of a checkpoint into a block, or a vision encoder into a encoder.

    Only the tensors of the wanted layers are read, one by one, and at most one layer is in memory. What a vision
    encoder's checkpoint holds beside the encoder, and what was assumed of it, is named in the log.

    Args:
      source: see `sources.open_source`.
      layers_spec: see `parse_layers`; "all" for a vision encoder.
      out: folder of the block or encoder; it appears only when it is complete.
      dtype: "float32" (exact for float32, float16 and bfloat16 sources) or "bfloat16".
      final_norm: whether to take the norm after the source's last layer too; a encoder always has it.
      overwrite: whether an existing block or encoder may be replaced.
      given: what the user says of a vision encoder in timm's names.

    Returns:
      The manifest of the block or encoder.

    Raises:
      UserError: if the source is not a sound checkpoint of a known kind, it lacks the layers, or `out` is not free.
    """
    if dtype not in store.DTYPES:
        raise UserError(f"the dtype {dtype!r} is not one of {', '.join(store.DTYPES)}")
    out, target = pathlib.Path(out).expanduser(), store.DTYPES[dtype]
    writer.check_free(out, overwrite=overwrite)
    if pathlib.Path(source).expanduser().is_dir() and outputs.is_inside(out, pathlib.Path(source).expanduser()):
        raise UserError(f"--out {out} lies in --source {source}: give a folder elsewhere")
    reader = open_source(source, given)
    if isinstance(reader, EncoderSource):
        parts, fields = _parts_of_encoder(reader, layers_spec, target, final_norm=final_norm)
        make, tensors = EncoderManifest, reader.tensors
    else:
        parts, fields = _parts_of_block(reader, layers_spec, target, final_norm=final_norm)
        make, tensors = Manifest, reader

    def manifest_of(sha256: Mapping[str, str]) -> Manifest | EncoderManifest:
        return make(
            source=tensors.source,
            source_format=tensors.source_format,
            dtype=dtype,
            sha256=sha256,
            jaxboost_version=jaxboost.__version__,
            **fields,
        )

    # Before anything is read: a manifest that no run could open is not written.
    manifests.check(manifest_of(dict.fromkeys((part.key for part in parts), "0" * 64)))
    size = target.itemsize * sum(part.size for part in parts)
    _check_space(out, size)

    with (
        writer.writing(out, overwrite=overwrite) as block,
        tqdm(total=size, unit="B", unit_scale=True, desc="converting", disable=None) as progress,
    ):
        for part in parts:
            block.add(part, progress.update)
        manifest = manifest_of(block.sha256)
        block.finish(manifest)
    return manifest


def parse_layers(spec: str, n_layers: int) -> tuple[int, ...]:
    """Layer numbers from "31", "0,15,31", "-1" (counted from the end) or "all", in the order given.

    Raises:
      UserError: for anything else, a layer out of range, or one that is named twice.
    """
    if spec.strip() == "all":
        return tuple(range(n_layers))
    valid = f"valid are 0 to {n_layers - 1}, -{n_layers} to -1 from the end, or all"
    layers = []
    for item in spec.split(","):
        if not re.fullmatch(r"-?\d+", item.strip()):
            raise UserError(f"--layers {spec!r}: {item.strip()!r} is not a layer number: {valid}")
        number = int(item)
        if not -n_layers <= number < n_layers:
            raise UserError(f"--layers {spec!r}: there is no layer {number}: {valid}")
        layer = number % n_layers
        if layer in layers:
            raise UserError(f"--layers {spec!r}: layer {layer} is named twice: {valid}")
        layers.append(layer)
    return tuple(layers)


def summary(manifest: Manifest | EncoderManifest, out: str | pathlib.Path) -> str:
    """A few lines for the user: what was converted, where it is, and how it is used."""
    size = sum(path.stat().st_size for path in pathlib.Path(out).expanduser().rglob("*") if path.is_file())
    if isinstance(manifest, EncoderManifest):
        shape = manifest.arguments
        layers = f"all {shape['depth']} of a vision encoder of width {shape['width']}, patch {shape['patch']}"
        used = f"--config.model.weights={out}, for PneumoLLM --config.pneumollm.vision={out}"
    else:
        numbers = list(map(str, manifest.layers))
        layers = f"{', '.join(numbers)} of 0 to {manifest.layers_in_source - 1}"
        layers += ", and the final norm" if manifest.final_norm else ""
        used = " ".join(
            f"--config.boost.{field}" for field in (f"block={out}", f"layers={','.join(numbers)}", "family=")
        )
        used += ", for PneumoLLM --config.llama. in the place of --config.boost."
    return "\n".join(
        [
            f"source  {manifest.source} ({manifest.source_format})",
            f"layers  {layers}",
            f"dtype   {manifest.dtype}",
            f"wrote   {size / 2**20:.1f} MiB to {out}",
            f"use it  {used}",
        ]
    )


def _parts_of_block(
    reader: Reader, layers_spec: str, dtype: np.dtype, *, final_norm: bool
) -> tuple[list[Part], dict[str, Any]]:
    """What is written, in order, and the entries of the manifest that only a block has."""
    layers = parse_layers(layers_spec, reader.n_layers)
    names.check(reader, layers, final_norm=final_norm)
    shapes = names.weight_shapes(reader.config)
    parts = [
        Part(
            key=str(layer),
            size=_elements(shapes.values()),
            reads={weight: functools.partial(names.read_weight, reader, layer, weight, dtype) for weight in shapes},
        )
        for layer in layers
    ]
    if final_norm:
        read = functools.partial(names.read_final_norm, reader, dtype)
        parts.append(Part(key=FINAL_NORM, size=reader.config.width, reads={"scale": read}))
    if reader.config.rope_unsupported is not None:
        logger.info(
            "%s is not supported: the block can only be used without the rotary embedding (boost.rope=False)",
            reader.config.rope_unsupported,
        )
    fields = {
        "layers": layers,
        "layers_in_source": reader.n_layers,
        "final_norm": final_norm,
        "config": reader.config,
    }
    return parts, fields


def _parts_of_encoder(
    source: EncoderSource, layers_spec: str, dtype: np.dtype, *, final_norm: bool
) -> tuple[list[Part], dict[str, Any]]:
    """What is written, in order, and the entries of the manifest that only a encoder has."""
    if layers_spec.strip() != "all":
        raise UserError(
            f"--layers {layers_spec!r}: {source.tensors.source} is a vision encoder, which is converted whole: pass "
            "--layers all"
        )
    if not final_norm:
        raise UserError("a vision encoder is converted with its final norm: leave --nofinal_norm out")
    encoder_names.check(source)
    for note in source.notes:
        logger.info("%s", note)
    if names_left_out := encoder_names.left_out(source):
        logger.info("not part of the encoder and not read: %s", names.listed(names_left_out))
    parts = [
        Part(
            key=key,
            size=_elements(shapes.values()),
            reads={
                weight: functools.partial(encoder_names.read_weight, source, key, weight, dtype) for weight in shapes
            },
        )
        for key, shapes in encoder_names.part_shapes(source.arguments, source.image_size).items()
    ]
    return parts, {
        "arguments": source.arguments,
        "image_size": source.image_size,
        "resizing": source.resizing,
    }


def _elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _check_space(out: pathlib.Path, needed: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            f"{out} needs {needed / 2**20:.0f} MiB, but {parent} has {free / 2**20:.0f} MiB left: make room"
        )

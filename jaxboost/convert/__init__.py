"""Conversion of LLaMA-family checkpoints into blocks that the models load."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import jaxboost
from jaxboost.convert import names, store, writer
from jaxboost.convert.sources import open_source
from jaxboost.convert.store import Manifest
from jaxboost.errors import UserError


def convert(
    source: str,
    layers_spec: str,
    out: str | Path,
    *,
    dtype: str = "float32",
    final_norm: bool = True,
    overwrite: bool = False,
) -> Manifest:
    """Converts decoder layers of a checkpoint into a block.

    Only the tensors of the wanted layers are read, one by one, and at most one layer is in memory.

    Args:
      source: see `sources.open_source`.
      layers_spec: see `parse_layers`.
      out: folder of the block; it appears only when it is complete.
      dtype: "float32" (exact for float32, float16 and bfloat16 sources) or "bfloat16".
      final_norm: whether to take the norm after the source's last layer too.
      overwrite: whether an existing block may be replaced.

    Returns:
      The block's manifest.

    Raises:
      UserError: if the source is not a sound LLaMA-family checkpoint, it lacks the layers, or `out` is not free.
    """
    if dtype not in store.DTYPES:
        raise UserError(f"the dtype {dtype!r} is not one of {', '.join(store.DTYPES)}")
    out, target = Path(out).expanduser(), store.DTYPES[dtype]
    writer.check_free(out, overwrite=overwrite)
    reader = open_source(source)
    layers = parse_layers(layers_spec, reader.n_layers)
    names.check(reader, layers, final_norm=final_norm)
    layer_bytes = sum(int(np.prod(shape)) for shape in names.weight_shapes(reader.config).values()) * target.itemsize
    _check_space(out, layer_bytes * len(layers))

    with (
        writer.writing(out, overwrite=overwrite) as block,
        tqdm(total=layer_bytes * len(layers), unit="B", unit_scale=True, desc="converting", disable=None) as progress,
    ):
        for layer in layers:
            leaves = {}
            for weight in names.weight_shapes(reader.config):
                leaves[weight] = _on_host(names.read_weight(reader, layer, weight, target))
                progress.update(leaves[weight].nbytes)
            block.add_layer(layer, leaves)
            # Before the next layer is read, so that one at a time is held.
            del leaves
        if final_norm:
            block.add_final_norm(_on_host(names.transposed(reader.read(reader.layout.final_norm), target)))
        manifest = Manifest(
            source=reader.source,
            source_format=reader.source_format,
            layers=layers,
            layers_in_source=reader.n_layers,
            final_norm=final_norm,
            dtype=dtype,
            config=reader.config,
            sha256=block.sha256,
            jaxboost_version=jaxboost.__version__,
        )
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


def summary(manifest: Manifest, out: str | Path) -> str:
    """A few lines for the user: what was converted, where it is, and how it is used."""
    size = sum(path.stat().st_size for path in Path(out).expanduser().rglob("*") if path.is_file())
    layers = ", ".join(map(str, manifest.layers))
    used = ",".join(map(str, manifest.layers))
    return "\n".join(
        [
            f"source  {manifest.source} ({manifest.source_format})",
            f"layers  {layers} of 0 to {manifest.layers_in_source - 1}"
            + (", and the final norm" if manifest.final_norm else ""),
            f"dtype   {manifest.dtype}",
            f"wrote   {size / 2**20:.1f} MiB to {out}",
            f"use it  --config.boost.block={out} --config.boost.layers={used} --config.boost.family=",
        ]
    )


def _on_host(array: np.ndarray) -> jax.Array:
    # Orbax would copy a NumPy array before it writes, but writes a jax.Array from where it lies.
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = jax.local_devices()[0]
    return jax.block_until_ready(jax.device_put(array, device))


def _check_space(out: Path, needed: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            f"{out} needs {needed / 2**20:.0f} MiB, but {parent} has {free / 2**20:.0f} MiB left: make room"
        )

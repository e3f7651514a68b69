"""Converted weights that a run starts from: where they lie, whether they fit, and what its result says of them."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost import convert
from jaxboost.convert import placing, store
from jaxboost.convert.placing import Pack, Placement
from jaxboost.errors import UserError, check_choice
from jaxboost.models.frozen import Tree
from jaxboost.models.llama import FAMILIES, LlamaConfig

RANDOM = "random"
INT8 = "int8"
# Of R-LLM's parts and of PneumoLLM's.
ROLES = ("encoder", "block", "vision", "llama")
WEIGHTS = ("stored", INT8)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A part of a model whose weights come from elsewhere than its trainable rest, or are the random control of such.

    Attributes:
      role: what result.json calls it, one of ROLES.
      paths: where its weights are in the tree of all.
      trainable: whether they are trained too.
      about: what result.json says of them beside the fingerprint.
      text: what the log says of them.
      load: gives the weights, a tree for each path, and their fingerprint; None for random ones.
      shards: whether large weights are spread over the devices instead of copied to each.
      pack: how the matrices of its layers are held, None for as they come.
    """

    role: str
    paths: tuple[tuple[str, ...], ...]
    trainable: bool
    about: Mapping[str, Any]
    text: str
    load: Callable[[Placement], tuple[tuple[dict[str, Any], ...], str]] | None
    shards: bool = False
    pack: Pack | None = None

    def held(self, weights: Tree) -> Tree:
        """The part's weights, or their shapes under `jax.eval_shape`, as they are held."""
        if self.pack is None:
            return weights
        return jax.tree.map(lambda leaf: self.pack(leaf) if leaf.ndim == 3 else leaf, weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaRef:
    """Layers of a block: its folder, which of them, and whether with the final norm."""

    path: pathlib.Path
    layers: tuple[int, ...]
    final_norm: bool
    manifest: store.Manifest


def resolve_llama(
    section: str,
    *,
    family: str,
    block: str,
    source: str,
    convert: bool,
    layers: tuple[int, ...],
    final_norm: str,
    reads_block: bool,
    with_weights: bool,
) -> tuple[LlamaConfig, int, LlamaRef | None]:
    """Shape and number of the LLaMA layers that a config section names, and the block that holds them.

    Args:
      section: its name, for messages; the other arguments are its fields, explained in configs/default.py.
      reads_block: whether the model has such layers at all; some controls only take their width.
      with_weights: whether the block is wanted (and converted where the config says so), or shapes are enough.

    Returns:
      None as the block where none is read: for random layers, or without weights where `family` says enough.

    Raises:
      UserError: an unknown choice, or a block that is missing or does not fit.
    """
    _check_llama(section, family=family, block=block, layers=layers, final_norm=final_norm)
    needs_block = reads_block and block != RANDOM
    ref = None
    if family and not (needs_block and with_weights):
        shape = FAMILIES[family]
    elif block in ("", RANDOM):
        raise UserError(
            f'config field {section}.block is empty: give the folder that convert_weights.py made, or "random"'
            if needs_block and family
            else f"config fields {section}.family and {section}.block give no shapes: set {section}.family to one of "
            + ", ".join(FAMILIES)
        )
    else:
        wanted = ",".join(map(str, layers)) or "all"
        folder = find_converted("block", block, source, wanted, convert_missing=convert and with_weights)
        manifest = store.read_manifest(folder)
        # Raises where the block lacks one of them.
        store.fingerprint_of(manifest, tuple(layers) or None, final_norm == "loaded")
        ref = LlamaRef(
            path=folder,
            layers=tuple(layers) or manifest.layers,
            final_norm=final_norm == "loaded",
            manifest=manifest,
        )
        shape = manifest.config
        if family and shape.shape != FAMILIES[family].shape:
            raise UserError(
                f"block {block} has {_shape_text(shape)}, which does not fit {section}.family={family} with"
                f" {_shape_text(FAMILIES[family])}: set {section}.family to the block's, or empty"
            )
    return shape, len(ref.layers if ref else layers), ref if needs_block else None


def check_rope(section: str, shape: LlamaConfig, *, used: bool) -> None:
    """Raises UserError where layers are to be rotated whose checkpoint does so in a way that is not supported."""
    if used and shape.rope_unsupported is not None:
        fix = "set boost.rope to False, or take" if section == "boost" else "take"
        raise UserError(
            f"config field {section}.block: its layers cannot use their checkpoint's rotary embedding, because"
            f" {shape.rope_unsupported} is not supported: {fix} a block of another checkpoint"
        )


def _check_llama(section: str, *, family: str, block: str, layers: tuple[int, ...], final_norm: str) -> None:
    check_choice(final_norm, ("ones", "loaded"), f"config field {section}.final_norm")
    if family:
        check_choice(family, FAMILIES, f"config field {section}.family")
    if not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise UserError(
            f"config field {section}.layers: {layers} should be layer numbers from 0, such as (31,) or (15, 31), or ()"
            " for all layers of the block"
        )
    if block == RANDOM and final_norm == "loaded":
        raise UserError(f"config field {section}.final_norm: a random block has no norm to load, set it to ones")


def llama_weights(
    role: str,
    path: tuple[str, ...],
    ref: LlamaRef | None,
    *,
    shape: LlamaConfig,
    layers: tuple[int, ...],
    depth: int,
    trainable: bool,
    dtype: str,
    shards: bool = False,
    weights: str = "stored",
) -> Pretrained:
    """The part of a model that `resolve_llama` found, or its random control.

    Args:
      role, trainable, shards: see `Pretrained`.
      path: the only one of its `paths`.
      shape: of its layers.
      layers: of the config, which a random block only has by name.
      dtype: of random weights that stay as they are; trained ones are float32.
      weights: one of WEIGHTS, how frozen ones are held.

    Raises:
      UserError: what packs them is not installed.
    """
    pack, extra, ending = None, {"arguments": dataclasses.asdict(shape)}, ""
    if weights == INT8:
        placing.import_qwix()
        pack, ending = placing.int8, ", held as int8"
        extra["weights"] = INT8
    if ref is None:
        return Pretrained(
            role=role,
            paths=(path,),
            trainable=trainable,
            shards=shards,
            pack=pack,
            about={"source": RANDOM, "layers": list(layers), "dtype": "float32" if trainable else dtype, **extra},
            text=f"a random block of {depth} layer(s): the control without pretraining{ending}",
            load=None,
        )
    state = "trained too" if trainable else "frozen"
    return Pretrained(
        role=role,
        paths=(path,),
        trainable=trainable,
        shards=shards,
        pack=pack,
        about={"source": ref.manifest.source, "layers": list(ref.layers), "dtype": ref.manifest.dtype, **extra},
        text=f"layer {', '.join(map(str, ref.layers))} of {ref.manifest.source}, {state}{ending}",
        load=functools.partial(_load_llama, ref, trainable, pack),
    )


def _load_llama(
    ref: LlamaRef, trainable: bool, pack: Pack | None, placement: Placement
) -> tuple[tuple[dict[str, Any]], str]:
    loaded = store.load_block(ref.path, ref.layers, final_norm=ref.final_norm, placement=placement, pack=pack)
    norm = loaded.final_norm
    if norm is None:
        shape = (ref.manifest.config.width,)
        norm = jax.device_put(jnp.ones(shape), placement(shape))
    weights = {"layers": dict(loaded.weights), "final_norm": norm}
    return (as_trained(weights) if trainable else weights,), loaded.fingerprint


def as_trained(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights in float32, which the optimiser's small steps need, whatever dtype they were stored in."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), weights)


def llama_fingerprint(folder: pathlib.Path, *, layers: tuple[int, ...], final_norm: str) -> str:
    """The fingerprint of what a config section names in the block at `folder`."""
    return store.fingerprint_of(store.read_manifest(folder), tuple(layers) or None, final_norm == "loaded")


def check_same(
    what: str,
    named: str,
    finished: Mapping[str, Any] | None,
    fingerprint: Callable[[pathlib.Path], str],
    folder: pathlib.Path,
) -> None:
    """Raises UserError where a finished run in `folder` used other weights than the config now names.

    Args:
      what: they are, for the message: "block" or "encoder".
      named: the config's folder of weights, or "random".
      finished: what result.json says of them. A folder that is no longer there is not held against the run.
      fingerprint: of what is in a folder.
    """
    if finished is None:
        return
    was_random = finished["source"] == RANDOM
    path = pathlib.Path(named).expanduser()
    same = was_random == (named == RANDOM)
    if same and not was_random and path.exists():
        same = fingerprint(path) == finished["sha256"]
    if not same:
        digits = f" ({finished['sha256'][:12]})" if finished["sha256"] else ""
        raise UserError(
            f"{folder} is a finished run with the {what} from {finished['source']}{digits}, not with {named}:"
            " give another --workdir"
        )


def digest(weights: Mapping[str, Any]) -> str:
    """Fingerprint of weights that no manifest describes."""
    leaves, _ = jax.tree.flatten_with_path(weights)
    return store.fingerprint({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def find_converted(what: str, folder: str, source: str, layers: str, *, convert_missing: bool) -> pathlib.Path:
    """The folder of converted weights, which is made first where it is missing and the config says so.

    Args:
      what: it holds, for messages: "block" or "encoder".
      layers: what `convert_weights.py` takes.

    Raises:
      UserError: it is missing and not to be made.
    """
    path = pathlib.Path(folder).expanduser()
    if not path.exists():
        if not (convert_missing and source):
            raise UserError(
                f"no {what} at {path}: make it with `python convert_weights.py --source {source or 'SOURCE'}"
                f" --layers {layers} --out {path}`"
            )
        layer = "all layers" if layers == "all" else f"layer {layers}"
        logger.info("no %s at %s: converting %s of %s", what, path, layer, source)
        try:
            convert.convert(source, layers, path)
        except UserError:
            # The runs of a sweep may all find it missing: what another of them has made meanwhile serves as well.
            if not path.exists():
                raise
            logger.info("another process has made %s meanwhile: it is used", path)
    return path


def _shape_text(config: LlamaConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.shape.items())

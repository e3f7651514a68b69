"""The LLaMA layers that a config section names: from a converted block, or random with the shapes of a family."""

import dataclasses
import functools
import logging
import os
import pathlib
from typing import Any

from jaxboost import io
from jaxboost.config.types import Config
from jaxboost.convert import manifests, placing, store
from jaxboost.convert.formats import merging
from jaxboost.convert.placing import Placement, Quantize
from jaxboost.errors import UserError, check_choice
from jaxboost.models.llama import DEPTHS, FAMILIES, LlamaConfig
from jaxboost.systems import controls
from jaxboost.systems.controls import Control
from jaxboost.systems.system import Recorded
from jaxboost.systems.weights import (
    RANDOM,
    Pretrained,
    as_trained,
    empty,
    find_converted,
    stored_dtype,
    warn_if_rounded,
)

INT8 = "int8"
# The layers of a family, or of a source to convert, if a config names none: `boost` takes the last, `llama` all.
LAST, ALL = "-1", "all"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """The LLaMA layers of a model, not yet read.

    Attributes:
      config: shape and constants of each.
      numbers: of the layers in their LLaMA model, in the order in which they run.
      folder: of the block that holds them; None: they are random, or only their shapes are needed.
      manifest: of that block.
      final_norm: whether the block's final norm is loaded; otherwise its weight is ones.
    """

    config: LlamaConfig
    numbers: tuple[int, ...]
    folder: pathlib.Path | None = None
    manifest: store.Manifest | None = None
    final_norm: bool = False


def find_layers(
    section: str, config: Config, *, used: bool, default: str, with_weights: bool, recorded: Recorded | None
) -> Layers:
    """Finds the LLaMA layers that a config section names.

    The manifest of a block gives its width, layers and constants. The family is used only if no block is named: for
    random layers; and for a missing block if only shapes are needed.

    Args:
      section: name of the section.
      config: the whole config.
      used: whether the model has these layers; some controls take only their width.
      default: the layers of a family, or of a source to convert, if `layers` is empty: LAST or ALL.
      with_weights: whether the block is needed (and converted if the config says so), or only shapes.
      recorded: see `systems.prepare`. A finished run without these layers needs no block.

    Raises:
      UserError: the block is missing, or lacks a layer.
    """
    fields = config[section]
    family, block, layers = fields.family, fields.block, tuple(fields.layers)
    wanted = used and with_weights and block != RANDOM
    if wanted and not block:
        raise empty(f"{section}.block")
    if not used and recorded and recorded.width:
        # Nothing but the width is read.
        return Layers(config=dataclasses.replace(FAMILIES["llama-tiny"], width=recorded.width), numbers=layers)
    if used and not recorded:
        _check_random(section, fields)
    is_named = block not in ("", RANDOM)
    # Finished runs of earlier versions took the width of the family if the block was missing.
    is_needed = with_weights and (used or not recorded)
    if family and not (is_named and (is_needed or os.path.exists(io.user_path(block)))):
        numbers = layers or layers_of_family(family, default)
        return Layers(config=FAMILIES[family].chosen(numbers), numbers=numbers)
    if not is_named:
        raise UserError(
            f"config fields {section}.family and {section}.block give no shapes: set {section}.family to one of "
            + ", ".join(FAMILIES)
        )
    folder = find_converted(
        "block",
        block,
        fields.source,
        ",".join(map(str, layers)) or default,
        dtype=stored_dtype(config.model.dtype, trainable=fields.get("trainable", False)),
        convert_missing=fields.convert and with_weights,
        adapter=fields.adapter,
        instead="" if used else f"; or leave {section}.block empty: only a width is needed, {section}.family has one",
    )
    manifest = store.read_manifest(folder)
    if wanted and not recorded:
        _check_adapter(section, fields, folder, manifest)
    if not used:
        return Layers(config=manifest.config, numbers=layers or manifest.layers)
    numbers = _layers_of_block(section, folder, manifest, layers)
    # Raises if the block has no final norm to load.
    store.fingerprint_of(manifest, numbers, fields.final_norm == "loaded")
    if wanted:
        if fields.get("trainable", False):
            warn_if_rounded("block", folder, manifest.dtype)
        _log_choice(section, family, folder, manifest, chosen=bool(layers))
    return Layers(
        config=store.config_of(manifest, numbers),
        numbers=numbers,
        folder=folder if wanted else None,
        manifest=manifest if wanted else None,
        final_norm=wanted and fields.final_norm == "loaded",
    )


def named_layers(fields: Config, *, used: bool, default: str) -> tuple[int, ...]:
    """The layers of a config section whose field `layers` is empty; () if its block is missing.

    Raises:
      UserError: the block, or the family, cannot be read.
    """
    if used and fields.block not in ("", RANDOM):
        folder = io.user_path(fields.block)
        return store.read_manifest(folder).layers if os.path.exists(folder) else ()
    return layers_of_family(check_choice(fields.family, FAMILIES, "family"), default) if fields.family else ()


def layers_of_family(family: str, default: str) -> tuple[int, ...]:
    """The last layer of a family, or all of its layers; see `find_layers`."""
    depth = DEPTHS[family]
    return tuple(range(depth)) if default == ALL else (depth - 1,)


def check_rope(section: str, config: LlamaConfig, *, used: bool) -> None:
    """Raises UserError if the rotary embedding is used, but the layers have none, or one that is not supported."""
    if used and not config.rotary:
        raise UserError(
            f"config field {section}.rope: these layers have no rotary embedding, but learned positions, which are not"
            f" part of a block: set {section}.rope to False"
        )
    if used and config.rope_unsupported is not None:
        fix = "set boost.rope to False, or take" if section == "boost" else "take"
        raise UserError(
            f"config field {section}.block: its layers cannot use their checkpoint's rotary embedding, because"
            f" {config.rope_unsupported} is not supported: {fix} a block of another checkpoint"
        )


def fingerprint(folder: pathlib.Path, fields: Config) -> str:
    """SHA-256 of the weights that a config section names in the block at `folder`."""
    return store.fingerprint_of(
        store.read_manifest(folder), tuple(fields.layers) or None, fields.final_norm == "loaded"
    )


def pretrained_layers(
    role: str,
    path: tuple[str, ...],
    layers: Layers,
    *,
    trainable: bool,
    dtype: str,
    shards: bool = False,
    storage: str = "stored",
    control: Control | None = None,
) -> Pretrained:
    """The pretrained part of a model that `find_layers` found, or its random control.

    Args:
      role, trainable, shards: see `Pretrained`.
      path: the only one of its `paths`.
      layers: what `find_layers` returned.
      dtype: of random weights that stay as they are; trained ones are float32.
      storage: of frozen weights: "stored" (as the block has them), or INT8.
      control: changes the weights of a block; None: they are used as they are. `validate` has seen that there is a
        block.

    Raises:
      UserError: qwix, which quantizes them, is not installed.
    """
    quantize, ending = None, ""
    if storage == INT8:
        placing.import_qwix()
        quantize, ending = placing.int8, ", held as int8"
    if layers.manifest is None:
        source, dtype = RANDOM, "float32" if trainable else dtype
        text = f"a random block of {len(layers.numbers)} layer(s): the control without pretraining{ending}"
    else:
        source, dtype = layers.manifest.source, layers.manifest.dtype
        changed = "" if control is None else f", {controls.TEXTS[control.kind]} (draw {control.seed})"
        text = (
            f"layer {_listed(layers.numbers)} of {source}{changed}, {'trained too' if trainable else 'frozen'}{ending}"
        )
    about = {
        "source": source,
        "layers": list(layers.numbers),
        "dtype": dtype,
        "arguments": layers.config.entries(),
        **({} if quantize is None else {"weights": storage}),
    }
    if control is not None and layers.manifest is not None:
        # The part's own fingerprint is that of the changed weights.
        loaded = store.fingerprint_of(layers.manifest, layers.numbers, layers.final_norm)
        about |= {"control": control.kind, "control_seed": control.seed, "loaded_sha256": loaded}
    return Pretrained(
        role=role,
        paths=(path,),
        trainable=trainable,
        shards=shards,
        quantize=quantize,
        about=about,
        text=text,
        load=None if layers.manifest is None else functools.partial(_load, layers, trainable, quantize, control),
    )


def _check_random(section: str, fields: Config) -> None:
    """Raises UserError if random layers have numbers that their family does not have."""
    if fields.block != RANDOM or not fields.family:
        return
    depth = DEPTHS[fields.family]
    if absent := [layer for layer in fields.layers if layer >= depth]:
        raise UserError(
            f"config field {section}.layers: {fields.family} has {depth} layers, 0 to {depth - 1}, not layer"
            f" {_listed(absent)}: choose among them, or set {section}.family to another family"
        )


def _check_adapter(section: str, fields: Config, folder: pathlib.Path, manifest: store.Manifest) -> None:
    """Raises UserError if the block has another adapter than the config names. Named by its folder, it may have any."""
    named, found = fields.adapter, manifest.adapter
    try:
        other = bool(named) and merging.identity(named) != found
    except UserError as error:
        raise UserError(f"config field {section}.adapter: {error}") from error
    if other:
        problem = f"{'another' if found else 'no recorded'} adapter was merged into the block"
        fix = f"leave the field empty, or convert again with `--adapter {named}` and --overwrite or another --out"
    elif not named and found and fields.source and fields.convert:
        problem, fix = "it is empty, but an adapter was merged into the block", f"name another {section}.block"
    else:
        return
    raise UserError(f"config field {section}.adapter: {problem} {folder} (from {manifest.source}): {fix}")


def _layers_of_block(
    section: str, folder: pathlib.Path, manifest: store.Manifest, layers: tuple[int, ...]
) -> tuple[int, ...]:
    """The chosen layers, or all. Raises UserError if the block does not hold them."""
    absent = [layer for layer in layers if layer not in manifest.layers]
    if not absent:
        return layers or manifest.layers
    depth = manifest.layers_in_source
    problem = (
        f"config field {section}.layers: the block at {folder} holds the layers {_listed(manifest.layers)} of"
        f" {manifest.source}, not layer {_listed(absent)}: choose among them, or give () for all of them"
    )
    if max(absent) < depth:
        command = manifests.command_of_block(",".join(map(str, layers)), "DIR")
        problem += f"; or convert what is needed with `{command}`"
    else:
        problem += f" ({manifest.source} has {depth} layers, 0 to {depth - 1})"
    raise UserError(problem)


def _log_choice(section: str, family: str, folder: pathlib.Path, manifest: store.Manifest, *, chosen: bool) -> None:
    """Logs that the block decides about shapes or layers, if the config suggests others or none."""
    if family and manifest.config.shape != FAMILIES[family].shape:
        shape = ", ".join(f"{name} {value}" for name, value in manifest.config.shape.items())
        logger.info("the block at %s is not of the family %s: its own shapes are used, %s", folder, family, shape)
    if not chosen and len(manifest.layers) > 1:
        logger.info(
            "%s.layers names none: all layers of the block at %s are used, %s",
            section,
            folder,
            _listed(manifest.layers),
        )


def _load(
    layers: Layers, trainable: bool, quantize: Quantize | None, control: Control | None, placement: Placement
) -> tuple[tuple[dict[str, Any], ...], str]:
    assert layers.folder is not None
    loaded = store.load_block(
        layers.folder,
        layers.numbers,
        final_norm=layers.final_norm,
        placement=placement,
        quantize=quantize,
        change=control,
    )
    weights = loaded.tree(placement)
    return (as_trained(weights) if trainable else weights,), loaded.fingerprint


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))

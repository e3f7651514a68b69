"""The LLaMA layers that a config section names: from a converted block, or random with the shapes of a family."""

import dataclasses
import functools
import logging
import pathlib
from typing import Any

from jaxboost.convert import placing, store
from jaxboost.convert.placing import Placement, Quantize
from jaxboost.errors import UserError, check_choice
from jaxboost.models.llama import DEPTHS, FAMILIES, LlamaConfig
from jaxboost.systems.weights import RANDOM, Pretrained, as_trained, find_converted

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
    section: str,
    *,
    family: str,
    block: str,
    source: str,
    convert: bool,
    layers: tuple[int, ...],
    final_norm: str,
    used: bool,
    default: str,
    with_weights: bool,
) -> Layers:
    """Finds the LLaMA layers that a config section names.

    The manifest of a block gives its width, layers and constants. The family is used only if no block is read: for
    random layers, and for a missing block if only shapes are needed.

    Args:
      section: name of the section, for messages; the arguments up to `final_norm` are its fields.
      used: whether the model has these layers; some controls take only their width.
      default: the layers of a family, or of a source to convert, if `layers` is empty: LAST or ALL.
      with_weights: whether the block is needed (and converted if the config says so), or only shapes.

    Raises:
      UserError: the block is missing, or lacks a layer.
    """
    wanted = used and with_weights and block != RANDOM
    if wanted and not block:
        raise UserError(
            f'config field {section}.block is empty: give the folder that `jaxboost convert` made, or "random"'
        )
    is_there = block not in ("", RANDOM) and pathlib.Path(block).expanduser().exists()
    if not (wanted or is_there) and family:
        return Layers(config=FAMILIES[family], numbers=tuple(layers) or layers_of_family(family, default))
    if block in ("", RANDOM):
        raise UserError(
            f"config fields {section}.family and {section}.block give no shapes: set {section}.family to one of "
            + ", ".join(FAMILIES)
        )
    spec = ",".join(map(str, layers)) or default
    folder = find_converted("block", block, source, spec, convert_missing=convert and with_weights)
    manifest = store.read_manifest(folder)
    if not used:
        return Layers(config=manifest.config, numbers=tuple(layers) or manifest.layers)
    numbers = _layers_of_block(section, folder, manifest, tuple(layers))
    # Raises if the block has no final norm to load.
    store.fingerprint_of(manifest, numbers, final_norm == "loaded")
    if wanted:
        _log_choice(section, family, folder, manifest, chosen=bool(layers))
    return Layers(
        config=manifest.config,
        numbers=numbers,
        folder=folder if wanted else None,
        manifest=manifest if wanted else None,
        final_norm=wanted and final_norm == "loaded",
    )


def named_layers(*, family: str, block: str, used: bool, default: str) -> tuple[int, ...]:
    """The layers of a config section whose field `layers` is empty; () if its block is missing.

    Raises:
      UserError: the block, or the family, cannot be read.
    """
    if used and block not in ("", RANDOM):
        folder = pathlib.Path(block).expanduser()
        return store.read_manifest(folder).layers if folder.exists() else ()
    return layers_of_family(check_choice(family, FAMILIES, "family"), default) if family else ()


def layers_of_family(family: str, default: str) -> tuple[int, ...]:
    """The last layer of a family, or all of its layers; see `find_layers`."""
    depth = DEPTHS[family]
    return tuple(range(depth)) if default == ALL else (depth - 1,)


def check_rope(section: str, config: LlamaConfig, *, used: bool) -> None:
    """Raises UserError if the rotary embedding is used, but that of the layers' checkpoint is not supported."""
    if used and config.rope_unsupported is not None:
        fix = "set boost.rope to False, or take" if section == "boost" else "take"
        raise UserError(
            f"config field {section}.block: its layers cannot use their checkpoint's rotary embedding, because"
            f" {config.rope_unsupported} is not supported: {fix} a block of another checkpoint"
        )


def fingerprint(folder: pathlib.Path, *, layers: tuple[int, ...], final_norm: str) -> str:
    """SHA-256 of the weights that a config section names in the block at `folder`."""
    return store.fingerprint_of(store.read_manifest(folder), tuple(layers) or None, final_norm == "loaded")


def pretrained_layers(
    role: str,
    path: tuple[str, ...],
    layers: Layers,
    *,
    trainable: bool,
    dtype: str,
    shards: bool = False,
    storage: str = "stored",
) -> Pretrained:
    """The pretrained part of a model that `find_layers` found, or its random control.

    Args:
      role, trainable, shards: see `Pretrained`.
      path: the only one of its `paths`.
      layers: what `find_layers` returned.
      dtype: of random weights that stay as they are; trained ones are float32.
      storage: of frozen weights: "stored" (as the block has them), or INT8.

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
        text = f"layer {_listed(layers.numbers)} of {source}, {'trained too' if trainable else 'frozen'}{ending}"
    about = {
        "source": source,
        "layers": list(layers.numbers),
        "dtype": dtype,
        "arguments": dataclasses.asdict(layers.config),
        **({} if quantize is None else {"weights": storage}),
    }
    return Pretrained(
        role=role,
        paths=(path,),
        trainable=trainable,
        shards=shards,
        quantize=quantize,
        about=about,
        text=text,
        load=None if layers.manifest is None else functools.partial(_load, layers, trainable, quantize),
    )


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
        spec = ",".join(map(str, layers))
        problem += f"; or convert what is needed with `jaxboost convert --source SOURCE --layers {spec} --out DIR`"
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
    layers: Layers, trainable: bool, quantize: Quantize | None, placement: Placement
) -> tuple[tuple[dict[str, Any], ...], str]:
    assert layers.folder is not None
    loaded = store.load_block(
        layers.folder, layers.numbers, final_norm=layers.final_norm, placement=placement, quantize=quantize
    )
    weights = loaded.tree(placement)
    return (as_trained(weights) if trainable else weights,), loaded.fingerprint


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))

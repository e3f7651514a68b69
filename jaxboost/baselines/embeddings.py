"""Embeddings of images by a frozen encoder: computed once, and kept on disk by image and encoder."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from jaxboost.data.dataset import Dataset, MappedRows, Split
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.evaluation import evaluate
from jaxboost.models.frozen import Tree, merge
from jaxboost.systems import System
from jaxboost.training import source_tokens

# batch on the devices -> embeddings (B, 2W), see `models.embedder`
Encode = Callable[[evaluate.Batch], jax.Array]
VIEWS = 3


def make_encode(system: System, weights: tuple[Tree, Tree, Tree], replicated: jax.NamedSharding) -> Encode:
    """The compiled encoder of a baseline's system.

    Args:
      system: of `systems.baseline`, with an encoder.
      weights: trained (none), frozen, statistics (none), from `start.initialise`.
      replicated: see `step.make_mesh`.
    """

    @functools.partial(jax.jit, out_shardings=replicated)
    def encode(trees: tuple[Tree, Tree, Tree], images: jax.Array) -> jax.Array:
        return merge(system.graphdef, *trees)(images)

    return lambda batch: encode(weights, batch["image"])


def middle_views(volumes: np.ndarray | MappedRows) -> np.ndarray:
    """The three orthogonal middle slices of volumes (n, S, S, S, C), of each volume in the order of the axes.

    The middle of an even S is S / 2. Returns (3n, S, S, C).
    """
    middle = volumes.shape[1] // 2
    views = [np.take(np.asarray(volume), middle, axis) for volume in volumes for axis in range(VIEWS)]
    return np.array(views, volumes.dtype).reshape(-1, *volumes.shape[2:])


def of_dataset(
    dataset: Dataset,
    encode: Encode,
    *,
    batch_size: int,
    image_size: int,
    by_batch: jax.NamedSharding,
    folder: pathlib.Path,
    key: str,
) -> dict[str, np.ndarray]:
    """The embeddings of all splits: split -> float32 (n, 2W).

    Volumes are encoded by three views, see `middle_views`, and their embeddings averaged.

    Args:
      dataset: with images or volumes.
      encode: see `make_encode`.
      batch_size, image_size: of the encoder's batches.
      by_batch: see `step.make_mesh`.
      folder, key: see `source_tokens.encode`; the embeddings of views are kept one by one.

    Raises:
      UserError, Stopped: see `source_tokens.encode`.
    """
    splits = {name: _as_images(split) for name, split in dataset.splits.items()}
    encoded = source_tokens.encode(
        dataclasses.replace(dataset, splits=splits),
        lambda batch: encode(evaluate.put(batch, by_batch))[:, np.newaxis],
        batch_size=batch_size,
        image_size=image_size,
        augment=Augment(),
        folder=folder,
        key=key,
    )
    return {
        name: _averaged(np.asarray(encoded.splits[name].images)[:, 0], len(split))
        for name, split in dataset.splits.items()
    }


def of_images(
    images: np.ndarray, encode: Encode, *, batch_size: int, image_size: int, by_batch: jax.NamedSharding
) -> np.ndarray:
    """The embeddings of images (n, S, S, C) or volumes (n, S, S, S, C) as `of_dataset` has them, float32 (n, 2W)."""
    split = _as_images(Split(images=images, labels=np.zeros((len(images), 1), np.int64)))
    found = batches.eval_batches(split, batch_size=batch_size, image_size=image_size)
    return _averaged(evaluate.run_batches(encode, found, by_batch), len(images))


def _as_images(split: Split) -> Split:
    if len(split.images.shape) == 4:
        return Split(images=split.images, labels=split.labels)
    return Split(images=middle_views(split.images), labels=np.repeat(split.labels, VIEWS, axis=0))


def _averaged(found: np.ndarray, samples: int) -> np.ndarray:
    """The mean over the views of each sample; one view is left as it is."""
    views = found.reshape(samples, -1, found.shape[-1])
    return np.asarray(views[:, 0] if views.shape[1] == 1 else views.mean(1, dtype=np.float64), np.float32)

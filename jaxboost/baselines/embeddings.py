"""Embeddings of images by a frozen encoder: computed once, and kept on disk by image and encoder."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset, MappedRows, Split
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.evaluation import evaluate
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.frozen import Tree, merge
from jaxboost.models.slices import AXES, positions
from jaxboost.systems import System
from jaxboost.training import source_tokens

# batch on the devices -> embeddings (B, 2W), see `models.embedder`
Encode = Callable[[evaluate.Batch], jax.Array]


def slices_along_axis(config: Config) -> int:
    """The number of slices along each axis of a volume that a baseline's encoder sees; 0: images, or whole volumes."""
    fields = config.baseline
    if fields.ndim == 2 or BACKBONES[config.model.backbone].ndim == 3:
        return 0
    return fields.slices or 1


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


def views_of(volumes: np.ndarray | MappedRows, count: int) -> np.ndarray:
    """The slices of volumes (n, S, S, S, C), `count` along each axis, of each volume in the order of the axes.

    One along each axis is the middle one, of an even S the slice S / 2. Returns (3 count n, S, S, C).
    """
    numbers = positions(volumes.shape[1], count)
    views = [np.take(np.asarray(volume), number, axis) for volume in volumes for axis in AXES for number in numbers]
    return np.array(views, volumes.dtype).reshape(-1, *volumes.shape[2:])


def of_dataset(
    dataset: Dataset,
    encode: Encode,
    *,
    batch_size: int,
    image_size: int,
    by_batch: jax.NamedSharding,
    slices: int,
    folder: pathlib.Path,
    key: str,
) -> dict[str, np.ndarray]:
    """The embeddings of all splits: split -> float32 (n, 2W).

    Volumes are encoded by their slices, see `views_of`, and their embeddings averaged; a 3D encoder takes them whole.

    Args:
      dataset: with images or volumes.
      encode: see `make_encode`.
      batch_size, image_size: of the encoder's batches.
      by_batch: see `step.make_mesh`.
      slices: see `slices_along_axis`.
      folder, key: see `source_tokens.encode`; the embeddings of views are kept one by one.

    Raises:
      UserError, Stopped: see `source_tokens.encode`.
    """
    splits = {name: _as_images(split, slices) for name, split in dataset.splits.items()}
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
    images: np.ndarray, encode: Encode, *, batch_size: int, image_size: int, by_batch: jax.NamedSharding, slices: int
) -> np.ndarray:
    """The embeddings of images (n, S, S, C) or volumes (n, S, S, S, C) as `of_dataset` has them, float32 (n, 2W)."""
    split = _as_images(Split(images=images, labels=np.zeros((len(images), 1), np.int64)), slices)
    found = batches.eval_batches(split, batch_size=batch_size, image_size=image_size)
    return _averaged(evaluate.run_batches(encode, found, by_batch), len(images))


def _as_images(split: Split, slices: int) -> Split:
    if not slices:
        return Split(images=split.images, labels=split.labels)
    return Split(images=views_of(split.images, slices), labels=np.repeat(split.labels, len(AXES) * slices, axis=0))


def _averaged(found: np.ndarray, samples: int) -> np.ndarray:
    """The mean over the views of each sample; one view is left as it is."""
    views = found.reshape(samples, -1, found.shape[-1])
    return np.asarray(views[:, 0] if views.shape[1] == 1 else views.mean(1, dtype=np.float64), np.float32)

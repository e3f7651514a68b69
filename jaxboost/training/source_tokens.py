"""Computes the source tokens of a frozen encoder once, and keeps them on disk.

That is possible if nothing before them is trained or random.
"""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from tqdm import tqdm

from jaxboost import stopping
from jaxboost.data import array_cache
from jaxboost.data.dataset import Dataset, MappedRows
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.readers.npz import write_npz
from jaxboost.io import writing

logger = logging.getLogger(__name__)


def encode(
    dataset: Dataset,
    encoder: Callable[[Mapping[str, np.ndarray]], jax.Array],
    *,
    batch_size: int,
    image_size: int,
    augment: Augment,
    folder: pathlib.Path,
    key: str,
) -> Dataset:
    """Replaces the images of a data set by source tokens, float32 (n, d, W).

    Args:
      dataset: with images.
      encoder: batch -> source tokens (B, d, W).
      batch_size, image_size, augment: of the encoder's batches, see `batches.eval_batches`.
      folder: of the file with the tokens and the digests of their images. Tokens in the file are not computed again.
      key: identifies the encoder; each encoder has its own file.

    Raises:
      UserError: the file cannot be written.
      Stopped: a signal came; the tokens that were computed before it are kept.
    """
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    file, older = folder / f"source-tokens-{name}", folder / f"features-{name}"
    digests = {name: _digests(split.images) for name, split in dataset.splits.items()}
    # Earlier versions had another name for the file.
    known = _read(older if older.exists() and not file.exists() else file)
    missing = {name: [i for i, digest in enumerate(found) if digest not in known] for name, found in digests.items()}
    if total := sum(map(len, missing.values())):
        logger.info("encoding %d images once: nothing in the encoder is trained or random", total)
    before = len(known)
    with tqdm(total=total, unit="image", disable=None) as bar:
        try:
            for name, rows in missing.items():
                if not rows:
                    continue
                part, start = dataset.splits[name].take(np.array(rows)), 0
                for batch in batches.eval_batches(part, batch_size=batch_size, image_size=image_size, augment=augment):
                    mask = batch.pop("mask")
                    tokens = np.asarray(jax.device_get(encoder({"image": batch["image"]})), np.float32)[mask]
                    known |= dict(zip((digests[name][i] for i in rows[start:]), tokens, strict=False))
                    start += len(tokens)
                    bar.update(len(tokens))
        except stopping.Stopped:
            with stopping.deferred():
                _write(file, known, before)
            raise
    _write(file, known, before)
    splits = {
        name: dataclasses.replace(split, images=np.stack([known[digest] for digest in digests[name]]))
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def _digests(images: np.ndarray | MappedRows) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]


def _write(file: pathlib.Path, known: Mapping[str, np.ndarray], before: int) -> None:
    if len(known) > before:
        with writing(file):
            arrays = {"digests": np.array(list(known)), "tokens": np.stack(list(known.values()))}
            # Compression would be slow, and tokens would hardly become smaller.
            write_npz(file, arrays, compressed=False)


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Digest of an image -> tokens, from a file that `encode` wrote; {} if there is none, or it is damaged."""
    return array_cache.read(file, ["digests", "tokens"], _by_digest) or {}


def _by_digest(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    digests, tokens = arrays["digests"], arrays["tokens"]
    if digests.ndim != 1 or digests.dtype.kind != "U" or tokens.ndim != 3 or len(digests) != len(tokens):
        raise ValueError("its arrays do not fit each other")
    if tokens.dtype != np.float32 or not np.isfinite(tokens).all():
        raise ValueError("its tokens are not finite float32 numbers")
    return dict(zip(digests.tolist(), tokens, strict=True))

"""Computes the source tokens of a frozen encoder once, and keeps them on disk.

That is possible if nothing before them is trained or random.
"""

import contextlib
import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import filelock
import jax
import numpy as np
from tqdm import tqdm

from jaxboost import processes, stopping
from jaxboost.data import array_cache
from jaxboost.data.dataset import Dataset, MappedRows
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.readers.npz import write_npz
from jaxboost.io import writing

# As the lock of a run: it ends by itself if its owner has ended.
_LEASE = 120.0  # seconds

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
    """Replaces the images of a data set by source tokens, float32 (n, d, W), which are in memory once.

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
    with _alone(file):
        # Earlier versions had another name for the file.
        rows, tokens = _read(older if older.exists() and not file.exists() else file)
        before, missing = len(rows), _missing(digests, rows)
        # Several processes encode together, and the first writes.
        processes.check_same("file of source tokens", {str(file): len(rows)}, "use a disk that all processes share")
        if total := sum(map(len, missing.values())):
            logger.info("encoding %d images once: nothing in the encoder is trained or random", total)
        with tqdm(total=total, unit="image", disable=None) as bar:
            try:
                for name, positions in missing.items():
                    if not positions:
                        continue
                    part, found = dataset.splits[name].take(np.array(positions)), iter(positions)
                    options: dict[str, Any] = dict(batch_size=batch_size, image_size=image_size, augment=augment)
                    for batch in batches.eval_batches(part, **options):
                        mask = batch.pop("mask")
                        new = np.asarray(jax.device_get(encoder({"image": batch["image"]})), np.float32)[mask]
                        if len(tokens) < before + total:
                            tokens = _with_room(tokens, before + total, new.shape[1:])
                        tokens[len(rows) : len(rows) + len(new)] = new
                        rows |= {digests[name][next(found)]: row for row in range(len(rows), len(rows) + len(new))}
                        bar.update(len(new))
            except stopping.Stopped:
                with stopping.deferred():
                    _write(file, rows, tokens, before)
                raise
        _write(file, rows, tokens, before)
    splits = {
        name: dataclasses.replace(split, images=MappedRows([tokens], np.array([rows[each] for each in digests[name]])))
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


@contextlib.contextmanager
def _alone(file: pathlib.Path) -> Iterator[None]:
    """Runs that share a file take turns, so that only the first of them encodes the images."""
    if not processes.is_first():
        processes.gather("source tokens", None)
        yield
        return
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lease = filelock.SoftFileLease(
            file.with_name(f".{file.name}.lock"),
            lease_duration=_LEASE,
            heartbeat_interval=_LEASE / 8,
            thread_local=False,
        )
        try:
            lease.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("another run encodes the images: waiting for it")
            lease.acquire()
    try:
        processes.gather("source tokens", None)
        yield
    finally:
        with contextlib.suppress(OSError):
            lease.release(force=True)


def _digests(images: np.ndarray | MappedRows) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]


def _missing(digests: Mapping[str, Sequence[str]], rows: Mapping[str, int]) -> dict[str, list[int]]:
    """Split -> positions of the images without tokens, of equal images the first."""
    seen, missing = set(rows), {}
    for name, found in digests.items():
        missing[name] = []
        for position, digest in enumerate(found):
            if digest not in seen:
                seen.add(digest)
                missing[name].append(position)
    return missing


def _with_room(tokens: np.ndarray, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """One array of `count` images for all tokens, because many small ones would have to be copied to be written."""
    larger = np.empty((count, *shape), np.float32)
    if len(tokens):
        larger[: len(tokens)] = tokens
    return larger


def _write(file: pathlib.Path, rows: Mapping[str, int], tokens: np.ndarray, before: int) -> None:
    if len(rows) > before and processes.is_first():
        with writing(file):
            # Compression would be slow, and tokens would hardly become smaller.
            write_npz(file, {"digests": np.array(list(rows)), "tokens": tokens[: len(rows)]}, compressed=False)


def _read(file: pathlib.Path) -> tuple[dict[str, int], np.ndarray]:
    """Digest of an image -> row of the array of tokens, from a file that `encode` wrote.

    There are no rows if there is no file, or it is damaged.
    """
    return array_cache.read(file, ["digests", "tokens"], _checked) or ({}, np.empty((0, 0, 0), np.float32))


def _checked(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, int], np.ndarray]:
    digests, tokens = arrays["digests"], arrays["tokens"]
    if digests.ndim != 1 or digests.dtype.kind != "U" or tokens.ndim != 3 or len(digests) != len(tokens):
        raise ValueError("its arrays do not fit each other")
    # One image at a time: the comparison's result for all would take a quarter of the tokens' memory.
    if tokens.dtype != np.float32 or not all(np.isfinite(image).all() for image in tokens):
        raise ValueError("its tokens are not finite float32 numbers")
    rows = {digest: row for row, digest in enumerate(digests.tolist())}
    if len(rows) < len(digests):
        raise ValueError("an image is in it twice")
    return rows, tokens

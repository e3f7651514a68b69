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

import jax
import numpy as np
from tqdm import tqdm

from jaxboost import processes
from jaxboost.data import array_cache
from jaxboost.data.dataset import Dataset, MappedRows, row_digests
from jaxboost.data.pipeline import batches
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.rows.store import Made, Store
from jaxboost.errors import UserError

_TO_ENCODE = "images to encode"

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
    """Replaces the images of a data set by source tokens, float32 (n, d, W): in memory once, or mapped if large.

    Args:
      dataset: with images.
      encoder: batch -> source tokens (B, d, W).
      batch_size, image_size, augment: of the encoder's batches, see `batches.eval_batches`.
      folder: of the store of tokens, by the digests of their images. Tokens in it are not computed again. Runs that
        share it take turns. If it cannot be written, the tokens are in memory, and a warning says so.
      key: identifies the encoder; each encoder has its own store.

    Raises:
      UserError: of several processes, the first cannot keep the tokens, or another one does not see them.
      Stopped: a signal came; the tokens that were computed before it are kept.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    # Of earlier versions.
    older = [folder / f"{start}-{name}.npz" for start in ("source-tokens", "features")]
    digests = {name: list(row_digests(split.images)) for name, split in dataset.splits.items()}
    # Each image once.
    row_of = {
        digest: row for row, digest in enumerate(dict.fromkeys(each for found in digests.values() for each in found))
    }

    def encoded(positions: Mapping[str, Sequence[int]]) -> Iterator[Made]:
        options: dict[str, Any] = dict(batch_size=batch_size, image_size=image_size, augment=augment)
        with tqdm(total=sum(map(len, positions.values())), unit="image", disable=None) as bar:
            for name, rows in positions.items():
                part, found = dataset.splits[name].take(np.array(rows)), iter(rows)
                for batch in batches.eval_batches(part, **options):
                    mask = batch.pop("mask")
                    for row in np.asarray(jax.device_get(encoder({"image": batch["image"]})), np.float32)[mask]:
                        yield Made(digests[name][next(found)], row)
                    bar.update(int(mask.sum()))

    def make(missing: Sequence[str]) -> Iterator[Made]:
        if told and processes.count() > 1:
            raise UserError(f"files in {store.folder} were removed while they were written: run the same command again")
        left = set(missing)
        for digest, row in _read_older(older):
            if digest in left:
                left.remove(digest)
                yield Made(digest, row)
        if left:
            logger.info("encoding %d images once: nothing in the encoder is trained or random", len(left))
        positions = _positions(digests, left)
        told.append(processes.gather(_TO_ENCODE, positions))
        yield from encoded(positions)

    told: list[Any] = []
    store = Store(folder / f"source-tokens-{name}", what="tokens", only_latest=False)
    # Several processes encode each batch together. The first keeps the tokens, and the others read them.
    if processes.is_first():
        with processes.working("makes and keeps the tokens of a frozen encoder"):
            store.complete(dict.fromkeys(row_of, ""), make)
        if not told:
            processes.gather(_TO_ENCODE, {})
        if processes.count() > 1 and not store.is_kept:
            raise UserError(
                f"the tokens of the frozen encoder cannot be kept in {store.folder}, from where the other processes"
                " read them; a warning of process 0 says why: make room, or give a --workdir on another disk that all"
                " processes share"
            )
    else:
        for _ in encoded(processes.gather(_TO_ENCODE, None)[0]):
            pass
    processes.gather("tokens are kept", None)
    if not processes.is_first():
        store.complete(dict.fromkeys(row_of, ""), lambda missing: iter(()))
        if not all(digest in store for digest in row_of):
            raise UserError(
                f"the tokens that process 0 has kept in {store.folder} are not seen here: give a --workdir on a disk"
                " that all processes share"
            )
    # On a full disk the new rows are in memory alone.
    if store.is_kept:
        for file in older:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    tokens = store.array(list(row_of))
    splits = {
        name: dataclasses.replace(
            split, images=MappedRows([tokens], np.array([row_of[each] for each in digests[name]]))
        )
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def _positions(digests: Mapping[str, Sequence[str]], wanted: set[str]) -> dict[str, list[int]]:
    """Split -> positions of the images with the wanted digests, of equal images the first."""
    left, found = set(wanted), {}
    for name, each in digests.items():
        positions = []
        for position, digest in enumerate(each):
            if digest in left:
                left.remove(digest)
                positions.append(position)
        if positions:
            found[name] = positions
    return found


def _read_older(files: Sequence[pathlib.Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the digest of an image and its tokens, from files that earlier versions wrote."""
    for file in files:
        digests, tokens = array_cache.read(file, ["digests", "tokens"], _checked) or ((), ())
        yield from zip(digests, tokens, strict=True)


def _checked(arrays: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    digests, tokens = arrays["digests"], arrays["tokens"]
    if digests.ndim != 1 or digests.dtype.kind != "U" or tokens.ndim != 3 or len(digests) != len(tokens):
        raise ValueError("its arrays do not fit each other")
    # One image at a time: the comparison's result for all would take a quarter of the tokens' memory.
    if tokens.dtype != np.float32 or not all(np.isfinite(image).all() for image in tokens):
        raise ValueError("its tokens are not finite float32 numbers")
    if len(set(digests.tolist())) < len(digests):
        raise ValueError("an image is in it twice")
    return digests.tolist(), tokens

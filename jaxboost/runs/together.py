"""What the processes that train one run together compare before anything is written."""

import hashlib
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxboost import processes
from jaxboost.data.dataset import Dataset, MappedRows, row_digests
from jaxboost.errors import UserError


def check_same_run(dataset: Dataset, fingerprints: Mapping[str, str]) -> None:
    """Compares the data and the weights of all processes.

    Args:
      dataset: with the splits of the run.
      fingerprints: of the weights, and of a user's own data, see `Progress`.

    Raises:
      UserError: in all processes, if they differ.
    """
    if processes.count() == 1:
        return
    parts = {name: digest[:12] for name, digest in fingerprints.items()}
    with processes.working("compares the data"):
        for name, split in dataset.splits.items():
            parts[f"split {name}"] = f"{len(split)} samples, {_digest(split.images, split.labels, split.cells)[:12]}"
    processes.check_same("the data or the weights", parts, "put the same files where each process reads them")


def check_same_view(folder: pathlib.Path, finished: bool) -> None:
    """Raises UserError if some processes see a finished run in `folder`, and others do not."""
    found = processes.gather("finished", finished)
    if len(set(found)) > 1:
        texts = [f"{processes.name_of(number)}: {'yes' if each else 'no'}" for number, each in enumerate(found)]
        raise UserError(
            f"not all processes see whether the run in {folder} is finished ({', '.join(texts)}): give a --workdir on a"
            " disk that all processes share"
        )


def _digest(images: np.ndarray | MappedRows, labels: np.ndarray, cells: np.ndarray | None) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(labels).data)
    if cells is not None:
        digest.update(str(cells.tolist()).encode())
    digest.update(f"{images.shape} {images.dtype.str}".encode())
    # Those of decoded images are known, so these are not read.
    for row in row_digests(images):
        digest.update(row.encode())
    return digest.hexdigest()

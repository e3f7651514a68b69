"""Random access to a split for grain: its images or its row numbers, in order or padded for an evaluation."""

import numpy as np

from jaxboost.data.dataset import Split


class SplitSource:
    """Random access to a split: element i is {"image": uint8 (S, S[, S], C) or float32 (d, W), "label": int32 (L,)}.

    With clinical columns it has "columns" too, float32 (F,). Images or source tokens are read-only views of the split.
    """

    def __init__(self, split: Split):
        self._images = split.images
        self._labels = split.labels.astype(np.int32)
        self._columns = split.columns

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # A plain array, also if the split is memory-mapped.
        image = np.asarray(self._images[index]).view()
        image.flags.writeable = False
        element = {"image": image, "label": self._labels[index]}
        return element if self._columns is None else element | {"columns": self._columns[index]}

    def __repr__(self) -> str:
        return f"SplitSource(images={self._images.shape}, labels={self._labels.shape})"


class RowSource:
    """Random access to the row numbers of a split: element i is {"row": int32 ()}, which is i."""

    def __init__(self, split: Split):
        self._count = len(split)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"row": np.asarray(index, np.int32)}

    def __repr__(self) -> str:
        return f"RowSource({self._count})"


Source = SplitSource | RowSource


class PaddedSource:
    """The part of a split that one process evaluates, in order and padded to whole batches.

    Global batch k has the elements [kB, (k+1)B) of the split. Process p gets the p-th of `process_count` equal slices
    of each batch, so the concatenated slices are the split in order. Elements are those of `source` with "mask":
    bool (); after the end of the split they are zeros with mask False.
    """

    def __init__(self, source: Source, *, batch_size: int, process_index: int, process_count: int):
        self._source = source
        self._batch_size = batch_size
        self._per_process = batch_size // process_count
        self._offset = process_index * self._per_process

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * self._per_process

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, position = divmod(index, self._per_process)
        position += batch * self._batch_size + self._offset
        if position < len(self._source):
            return self._source[position] | {"mask": np.True_}
        return {name: np.zeros_like(value) for name, value in self._source[0].items()} | {"mask": np.False_}

    def __repr__(self) -> str:
        return f"PaddedSource({self._source!r}, {self._per_process} of {self._batch_size}, offset={self._offset})"

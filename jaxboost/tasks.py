"""The tasks (kinds of labels) by MedMNIST's names: targets, loss, probabilities, decisions and text, in one table.

Shapes: B or n examples, L labels per example, C classes. A label is a class number (L = 1); in a multi-label task
there is a 0 or 1 for each class (L = C).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import jax

BINARY = "binary-class"
MULTI_CLASS = "multi-class"
ORDINAL = "ordinal-regression"
MULTI_LABEL = "multi-label, binary-class"
TaskName = Literal["binary-class", "multi-class", "ordinal-regression", "multi-label, binary-class"]
LOSSES = ("auto", "columns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of label.

    jax is imported inside the methods that need it, because `jaxboost.data` imports this module, but not jax.

    Attributes:
      name: MedMNIST's name.
      multi_label: an example may have several classes, or none.
      binary: there are two classes, so a threshold, sensitivity and specificity are defined. Class 1 is positive.
    """

    name: str
    multi_label: bool = False
    binary: bool = False

    def labels_per_example(self, classes: int) -> int:
        """L, the number of label columns."""
        return classes if self.multi_label else 1

    def highest_label(self, classes: int) -> int:
        """The largest value that a label may have; the smallest is 0."""
        return 1 if self.multi_label else classes - 1

    def class_counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """How many examples have each class, int (C,), of labels int (n, L)."""
        return labels.sum(0) if self.multi_label else np.bincount(labels[:, 0], minlength=classes)

    def targets(self, labels: "jax.Array", classes: int, smoothing: float = 0.0) -> "jax.Array":
        """Targets float32 (B, C) of labels int (B, L), with label smoothing s.

        One-hot rows become (1 - s) y + s / C (Szegedy et al. 2016). Each column of a multi-label task has two
        classes and becomes (1 - s) y + s / 2.
        """
        import jax
        import jax.numpy as jnp

        y = labels.astype(jnp.float32) if self.multi_label else jax.nn.one_hot(labels[:, 0], classes)
        return y * (1 - smoothing) + smoothing / (2 if self.multi_label else classes)

    def losses(
        self, logits: "jax.Array", targets: "jax.Array", *, loss: str = "auto", class_weights: Sequence[float] = ()
    ) -> "jax.Array":
        """Loss of each example (B,).

        Args:
          logits: (B, C).
          targets: (B, C).
          loss: "auto": softmax cross-entropy (for two classes it equals the binary cross-entropy of the difference of
            the logits); in a multi-label task the mean of C binary cross-entropies. "columns": the mean of C binary
            cross-entropies for all tasks, as in PneumoLLM's code. Ordinal regression is trained as classification,
            because MedMNIST scores it so.
          class_weights: one factor per class, () for none. In a multi-label task it multiplies the terms of the
            classes that are present.
        """
        import jax
        import jax.numpy as jnp
        import optax

        weights = jnp.asarray(class_weights or 1.0)
        if self.multi_label:
            present, absent = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
            return -(weights * targets * present + (1 - targets) * absent).mean(-1)
        if loss == "columns":
            return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1) * (weights * targets).sum(-1)
        return optax.softmax_cross_entropy(logits, weights * targets)

    def probabilities(self, logits: "jax.Array") -> "jax.Array":
        """Probabilities (B, C) of logits (B, C): they sum to 1, except in a multi-label task."""
        import jax

        return jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits)

    def decide(self, probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """Predicted labels int64 (n, L) of probabilities (n, C).

        Args:
          probabilities: (n, C).
          threshold: in a binary task, class 1 is predicted if its probability is at least the threshold. None: if it
            is above 0.5, as in MedMNIST.
        """
        if self.multi_label:
            return (probabilities > 0.5).astype(np.int64)
        if self.binary:
            score = probabilities[:, -1]
            positive = score > 0.5 if threshold is None else score >= threshold
            return positive.astype(np.int64)[:, np.newaxis]
        return probabilities.argmax(1)[:, np.newaxis]

    def text(self, labels: np.ndarray, classes: Sequence[str]) -> str:
        """The class names of one example's labels (L,), as tables show them; several are joined by "|"."""
        numbers = np.flatnonzero(labels) if self.multi_label else labels
        return "|".join(classes[number] for number in numbers.tolist())

    def one_against_rest(self, labels: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the binary problems whose AUCs MedMNIST averages: (is positive, bool (n,); score, (n,))."""
        if self.binary:
            yield labels[:, 0] == 1, scores[:, -1]
            return
        for number in range(scores.shape[1]):
            yield labels[:, number] == 1 if self.multi_label else labels[:, 0] == number, scores[:, number]

    def has_every_class(self, labels: np.ndarray, classes: int) -> bool:
        """Whether every class occurs in labels (n, L), and in a multi-label task is also absent at least once."""
        if self.multi_label:
            return all(len(np.unique(column)) == 2 for column in labels.T)
        return len(np.unique(labels)) == classes


TASKS = {
    task.name: task
    for task in (
        Task(name=BINARY, binary=True),
        Task(name=MULTI_CLASS),
        Task(name=ORDINAL),
        Task(name=MULTI_LABEL, multi_label=True),
    )
}


def name_for(classes: int, *, multi_label: bool) -> TaskName:
    """The task of a user's own data with this many classes."""
    if multi_label:
        return MULTI_LABEL
    return BINARY if classes == 2 else MULTI_CLASS

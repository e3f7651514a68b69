"""A finished run whose inner values can be read: the values and gradients at the taps of its model.

Shapes: B or n images, N tokens, F frames of a volume, D channels, H heads.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost.data import columns as clinical
from jaxboost.errors import UserError, check_choice
from jaxboost.inference.open_run import FinishedRun
from jaxboost.models import taps
from jaxboost.models.frozen import Tree, merge
from jaxboost.models.trained_layer import TrainedLayer
from jaxboost.systems.weights import RANDOM
from jaxboost.tasks import TASKS

Weights = tuple[Tree, Tree, Tree]

# Gradients of more images at once would need much memory in a large model.
MOST_IMAGES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What the taps of a model gave; the first axis of every array is the images.

    Attributes:
      values: name of the tap -> value, float32.
      gradients: name of the tap -> gradient of the class's logit with respect to the value, float32.
    """

    values: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maps:
    """Maps of several images, made in the same way.

    Attributes:
      grid: float32 (n, h, w) or (n, d, h, w), not negative; an axis of length 1 has one value for the whole side.
      place: the tap that they were made at.
      text: the method and the place, in words, for captions.
    """

    grid: np.ndarray
    place: str
    text: str


class Tapped:
    """A finished run, its model and the grid of its patches.

    Args:
      run: the run.
      batch_size: images per batch; 0: the run's eval.batch_size, at most MOST_IMAGES.
    """

    def __init__(self, run: FinishedRun, batch_size: int = 0):
        self.run = run
        self.batch_size = batch_size or min(run.batch_size, MOST_IMAGES)
        self.ndim = run.preprocessing.ndim
        system = run.system
        # Shapes instead of weights: enough to ask what the model consists of.
        self.model = merge(system.graphdef, system.params, system.frozen, system.stats)

    @property
    def title(self) -> str:
        """A short name of the model, such as "vit_s + rllm" or "vit_s + rllm, random block"."""
        pretrained = self.run.system.pretrained
        random = any(part.role in ("block", "llama") and part.about["source"] == RANDOM for part in pretrained)
        return self.run.system.title.partition(" (")[0] + (", random block" if random else "")

    @property
    def boost(self) -> Any:
        """The booster, or None."""
        return getattr(self.model, "boost", None)

    @property
    def has_trained_layer(self) -> bool:
        """Whether the booster is the control with a trained transformer layer, whose taps are those of an encoder."""
        return isinstance(self.boost, TrainedLayer)

    @property
    def has_qformer(self) -> bool:
        """Whether the model is BLIP-2: a Q-Former reads all tokens of the encoder, and no LLM layer sees a patch."""
        return hasattr(self.model, "qformer")

    @property
    def has_grid(self) -> bool:
        """Whether the encoder's output has one token for each patch, not CLS tokens of its blocks or of frames."""
        encoder = self.model.encoder
        reads_blocks = encoder.traits.has_first_tokens and not hasattr(self.model, "boost")
        return encoder.traits.gives_tokens and not reads_blocks and encoder.tokens > self.side**self.ndim - 1

    def columns(self, count: int) -> dict[str, jax.Array]:
        """The argument `columns` of the model: zeros (count, F); {} if it reads no clinical columns.

        The logits are linear in them, so that neither the values at taps nor the gradients there depend on them.
        """
        F = clinical.width(self.run.columns)
        return {"columns": jnp.zeros((count, F), jnp.float32)} if F else {}

    @functools.cached_property
    def side(self) -> int:
        """Patches along one side of the image; 0 for an encoder without patches."""
        patch = getattr(self.model.encoder, "patch", 0)
        return self.run.preprocessing.image_size // patch if patch else 0

    def grid_of(self, tokens: np.ndarray) -> np.ndarray:
        """The patch tokens on their grid, (n, h, w, D) or (n, d, h, w, D), without CLS and registers, which come first.

        A ViViT's temporal tokens give (n, F, 1, 1, D).

        Args:
          tokens: (n, N, D), or (n, F, N, D) in a ViViT's spatial encoder.
        """
        side, width = self.side, tokens.shape[-1]
        if tokens.ndim == 4:
            return tokens[:, :, -(side**2) :].reshape(*tokens.shape[:2], side, side, width)
        grid = (side,) * self.ndim
        if tokens.shape[1] < side**self.ndim:
            grid = (side, *[1] * (self.ndim - 1))
        return tokens[:, -int(np.prod(grid)) :].reshape(len(tokens), *grid, width)

    def read(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        names: tuple[str, ...],
        *,
        path: str = "",
        weights: Weights | None = None,
    ) -> Seen:
        """Reads taps, and the gradients of a logit there.

        Args:
          images: uint8, as `FinishedRun.predict` takes them.
          targets: int (n,): the class of each image whose logit is differentiated.
          names: names of taps, see `models.taps`; those that the model does not pass are left out. A tap that is
            passed several times gives several entries.
          path: how the booster computes the CLS token, see `boost.Boost`; "": as in the run.
          weights: other weights than the run's.
        """
        graphdef, given = self.run.system.graphdef, self.run.weights if weights is None else weights
        parts: list[tuple[np.ndarray, Any]] = []
        for target in np.unique(targets):
            rows = np.flatnonzero(targets == target)

            def read(batch: Mapping[str, jax.Array], target: int = int(target)) -> Any:
                images = batch["image"]
                return _read(graphdef, names, path, given, images, target, self.columns(len(images)))

            parts.append((rows, self.run.apply(read, images[rows], self.batch_size)))
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        values, gradients = jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *[part for _, part in parts])
        return Seen(values=values, gradients=gradients)


# At the level of the module: several readers of one model compile once.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(
    graphdef: Any,
    names: tuple[str, ...],
    path: str,
    weights: Weights,
    images: jax.Array,
    target: jax.Array,
    columns: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    def logit(differences: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = merge(graphdef, *weights)
        if path and getattr(model, "boost", None) is not None:
            model.boost.path = path
        with taps.opened(differences) as values:
            logits = model(images, **columns)
        found = {name: value for name, value in values.items() if name.partition("/")[0] in names}
        # The images' logits do not depend on each other: the sum's gradient has that of each image.
        return logits[:, target].sum(), found

    shapes = jax.eval_shape(lambda: logit({})[1])
    zeros = {name: jnp.zeros(value.shape, jnp.float32) for name, value in shapes.items()}
    gradients, values = jax.grad(logit, has_aux=True)(zeros)

    def by_image(value: jax.Array) -> jax.Array:
        frames = len(value) // len(images)
        value = value.astype(jnp.float32)
        return value if frames == 1 else value.reshape(len(images), frames, *value.shape[1:])

    return jax.tree.map(by_image, (values, gradients))


def targets_of(tapped: Tapped, probabilities: np.ndarray, name: str = "") -> np.ndarray:
    """The class of each image that is explained, int (n,): the one named, or the predicted one.

    In a multi-label task that is the class with the highest probability.

    Raises:
      UserError: the run has no class of this name.
    """
    labels = tapped.run.labels
    if name:
        return np.full(len(probabilities), labels.classes.index(check_choice(name, labels.classes, "--class")))
    task = TASKS[labels.task]
    if task.multi_label:
        return probabilities.argmax(1)
    return task.decide(probabilities, labels.threshold)[:, 0]


def no_map(method: str, tapped: Tapped, reason: str) -> UserError:
    """The error for a model that has no map of a method."""
    return UserError(f"{tapped.run.folder} has no {method}: {reason}")

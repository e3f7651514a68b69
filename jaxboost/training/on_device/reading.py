"""From the row numbers that the host sends to the batch that a step sees."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxboost.data.pipeline.augment import Augment
from jaxboost.training.on_device import images as on_images
from jaxboost.training.on_device.rows import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a step makes its batch.

    Attributes:
      augment: random changes of training images.
      image_size: side of the model's input in pixels.
      one_by_one: see `images.augment_images`.
      by_batch: sharding of the batch.
    """

    augment: Augment
    image_size: int
    one_by_one: bool
    by_batch: jax.NamedSharding

    def train_batch(self, rows: Rows, each: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """The batch {"image", "label"[, "columns", "mask"]} of row numbers {"row": int32 (B,)[, "mask": bool (B,)]}.

        The random changes of an image depend on the key, which is that of the step, and on its place in the batch. They
        do not depend on the number of devices.
        """
        batch = self._read(rows, each)
        batch["image"] = self._augmented(batch["image"], jax.random.split(key, len(batch["label"])))
        return {**_placed(batch, self.by_batch), **({"mask": each["mask"]} if "mask" in each else {})}

    def train_batches(self, rows: Rows, each: Mapping[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
        """The batches (S, B, ...) of row numbers (S, B) by S keys; each as `train_batch` makes it."""
        S, B = each["row"].shape
        flat = {name: array.reshape(S * B) for name, array in each.items()}
        batch = self._read(rows, flat)
        # One level of mapping: inside another one a loop over images would compute every operation for each of them.
        image_keys = jax.vmap(lambda key: jax.random.split(key, B))(keys).reshape(S * B)
        batch["image"] = self._augmented(batch["image"], image_keys)
        batch = {name: array.reshape(S, B, *array.shape[1:]) for name, array in batch.items()}
        sharding = jax.NamedSharding(self.by_batch.mesh, jax.P(None, *self.by_batch.spec))
        return {**_placed(batch, sharding), **({"mask": each["mask"]} if "mask" in each else {})}

    def eval_batch(self, rows: Rows, each: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch {"image", "label"[, "columns"]} of row numbers for an evaluation: images are only resized."""
        batch = self._read(rows, each)
        return _placed(batch | {"image": on_images.fit(batch["image"], self.augment, self.image_size)}, self.by_batch)

    def _read(self, rows: Rows, each: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        batch = rows.read(each["row"])
        if "mask" in each:
            # As on the host: the padding of a batch is zeros.
            batch = {
                name: jnp.where(each["mask"].reshape(-1, *[1] * (array.ndim - 1)), array, jnp.zeros_like(array))
                for name, array in batch.items()
            }
        return batch

    def _augmented(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        return on_images.augment_images(images, keys, self.augment, self.image_size, one_by_one=self.one_by_one)


def _placed(batch: Mapping[str, jax.Array], sharding: jax.NamedSharding) -> dict[str, jax.Array]:
    return {name: jax.lax.with_sharding_constraint(array, sharding) for name, array in batch.items()}

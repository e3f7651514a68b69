"""Times how the batches of a run are made: by the host, or by the device that holds the split.

    python -m benchmarks.input [--rounds 3] [--json FILE]

The host resizes and augments images in its threads and copies batches to the device. With data on the device
(`data.on_device`), the host sends row numbers, and a compiled program reads, resizes and augments the images. Both are
timed alone, without a model. On a CPU both use the same cores, so images per second of the processor's time are
compared; on an accelerator images per second.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app
from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.data.pipeline.batches import train_iterator, train_rows

# The whole 2-D recipe and the whole 3-D recipe; a RandAugment of two operations.
RECIPE_2D = Augment(
    crop_scale=(0.5, 1.0), flip=0.5, interpolation="random", rand_augment_ops=2, rand_augment_increasing=True
)
RECIPE_3D = Augment(volume_flips=True, volume_rotations=True, shift=2, noise=0.02)
TURN_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is delivered.

    Attributes:
      name: for the table.
      shape: of one stored image (S, S[, S], C).
      image_size: side of the delivered image in pixels.
      augment: the augmentation.
      batch: images in a batch.
      samples: in the split.
    """

    name: str
    shape: tuple[int, ...]
    image_size: int
    augment: Augment
    batch: int = 64
    samples: int = 512

    def split(self) -> Split:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.samples, *self.shape), np.uint8)
        return Split(images=images, labels=rng.integers(0, 5, (self.samples, 1)))


CASES = (
    Case(name="2D grey 28 -> 224, resized", shape=(28, 28, 1), image_size=224, augment=Augment()),
    Case(name="2D grey 28 -> 224, recipe", shape=(28, 28, 1), image_size=224, augment=RECIPE_2D),
    Case(name="2D RGB 28 -> 224, recipe", shape=(28, 28, 3), image_size=224, augment=RECIPE_2D),
    Case(name="2D RGB 224, recipe", shape=(224, 224, 3), image_size=224, augment=RECIPE_2D),
    Case(name="3D 28, recipe", shape=(28, 28, 28, 1), image_size=28, augment=RECIPE_3D),
)


class Path:
    """One of the two ways, in a process of its own."""

    def __init__(self, case: Case, where: str):
        import jax

        from jaxboost.training import step
        from jaxboost.training.on_device import rows
        from jaxboost.training.on_device.reading import Reading

        by_batch = step.make_mesh()[1]
        options = dict(batch_size=case.batch, seed=0, image_size=case.image_size, augment=case.augment)
        self._batch, split = case.batch, case.split()
        if where == "host":
            iterator = train_iterator(split, **options)
            self._next = lambda: step.put(next(iterator), by_batch)
            return
        reading = Reading(
            augment=case.augment,
            image_size=case.image_size,
            one_by_one=jax.default_backend() == "cpu",
            by_batch=by_batch,
        )
        iterator, placed = train_rows(split, **options), rows.place(split, by_batch)
        read, key = jax.jit(reading.train_batch), jax.random.key(0)
        numbers = iter(range(2**31))

        def batch() -> Any:
            return read(placed, step.put(next(iterator), by_batch), jax.random.fold_in(key, next(numbers)))

        self._next = batch

    def deliver(self, seconds: float) -> tuple[float, float]:
        """Images per second, and per second of the processor's time, over at least `seconds`."""
        import jax

        # The first call compiles; the host's threads have filled their buffer after some batches.
        for _ in range(3):
            jax.block_until_ready(self._next())
        count, start, spent = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            jax.block_until_ready(self._next())
            count += self._batch
        return count / (time.perf_counter() - start), count / (time.process_time() - spent)


def compare(cases: Sequence[Case] = CASES, *, rounds: int, turn_seconds: float = TURN_SECONDS) -> dict[str, Any]:
    """Runs the comparison and returns what --json writes."""
    found = []
    for case in cases:
        with Remote(Path, case, "host") as host, Remote(Path, case, "device") as device:
            turns = {"host": [], "device": []}
            for _ in range(rounds):
                for name, remote in (("host", host), ("device", device)):
                    turns[name].append(remote.call("deliver", turn_seconds))
        row: dict[str, Any] = {"name": case.name, "batch": case.batch}
        for name, values in turns.items():
            row[f"{name}_images_per_second"] = statistics.median(wall for wall, _ in values)
            row[f"{name}_images_per_core_second"] = statistics.median(core for _, core in values)
        for unit in ("second", "core_second"):
            row[f"ratio_per_{unit}"] = row[f"device_images_per_{unit}"] / row[f"host_images_per_{unit}"]
        found.append(row)
    return {"cases": found}


def as_text(summary: dict[str, Any]) -> str:
    """A table of the cases."""
    head = f"{'':28} {'host/s':>9} {'device/s':>9} {'ratio':>6} {'host/core s':>12} {'device/core s':>14} {'ratio':>6}"
    lines = [head]
    for case in summary["cases"]:
        lines.append(
            f"{case['name']:28} {case['host_images_per_second']:9.0f} {case['device_images_per_second']:9.0f}"
            f" {case['ratio_per_second']:6.2f} {case['host_images_per_core_second']:12.0f}"
            f" {case['device_images_per_core_second']:14.0f} {case['ratio_per_core_second']:6.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    rounds = flags.DEFINE_integer("rounds", 3, "turns of each", lower_bound=1)
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        check_figures(json_file.value, "--json")
        summary = compare(rounds=rounds.value)
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)

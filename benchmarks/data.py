"""Times the training pipeline, and the training steps that it feeds.

    python -m benchmarks.data [--steps] [--rounds 3] [--json FILE]

`jaxboost.data.pipeline.batches.train_iterator` shuffles, resizes and batches random images in memory. With
--steps, a step of every paper backbone that takes such images (R-LLM with a LLaMA-7B layer) takes turns with it: each
is timed alone, with all cores to itself, and medians over the turns are compared. A ratio far above 1 says that the
pipeline does not slow down the step. Training runs both at once, so 1 would not be enough. Copies to a device are
in neither figure.
"""

import contextlib
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.contenders import Case, Jaxboost, Weights
from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app
from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.batches import train_iterator

BATCHES = (16, 128)
STEP_BATCH = 8
SAMPLES = 1024
TURN_SECONDS = 1.0  # a turn is as many batches or steps as fill this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Input and output of the pipeline.

    Attributes:
      name: for the table.
      shape: of one stored image (S, S[, S], C).
      image_size: edge length in pixels that is delivered.
      backbones: that take these images.
      samples: in the split; at least a batch.
    """

    name: str
    shape: tuple[int, ...]
    image_size: int
    backbones: tuple[str, ...] = ()
    samples: int = SAMPLES

    def split(self) -> Split:
        rng = np.random.default_rng(0)
        return Split(
            images=rng.integers(0, 256, (self.samples, *self.shape), np.uint8),
            labels=rng.integers(0, 5, (self.samples, 1)),
        )


IMAGES = (
    Images(name="2D grey 28", shape=(28, 28, 1), image_size=28),  # no paper backbone takes these
    Images(name="2D grey 28 -> 224", shape=(28, 28, 1), image_size=224, backbones=("vit_s",)),
    Images(name="2D RGB 28 -> 224", shape=(28, 28, 3), image_size=224, backbones=("vit_s",)),
    Images(name="3D 28", shape=(28, 28, 28, 1), image_size=28, backbones=("vivit_s", "vivit_m", "vit3d")),
)


class Loader:
    """The training pipeline alone."""

    def __init__(self, images: Images):
        self._split, self._image_size = images.split(), images.image_size

    def deliver(self, batch_size: int, seconds: float) -> float:
        """Images per second over at least `seconds`."""
        iterator = train_iterator(self._split, batch_size=batch_size, seed=0, image_size=self._image_size)
        # The reading threads start with the first batch. From then on batches are taken as soon as they are ready,
        # so none accumulate.
        next(iterator)
        count, elapsed, start = 0, 0.0, time.perf_counter()
        while elapsed < seconds:
            next(iterator)
            count += 1
            elapsed = time.perf_counter() - start
        # Else the threads would go on reading ahead during the next contender's turn.
        iterator.close()
        return count * batch_size / elapsed


def compare(
    images: Sequence[Images] = IMAGES,
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int,
    steps: bool,
    boost: str = "rllm",
    family: str = "llama-7b",
    step_batch: int = STEP_BATCH,
    turn_seconds: float = TURN_SECONDS,
) -> dict[str, Any]:
    """Runs the comparison and returns what --json writes: a case for each kind of images, backbone and batch."""
    cases = []
    for its_images in images:
        for backbone in (its_images.backbones if steps else ()) or (None,):
            trained = backbone and Case(model=backbone, boost=boost, family=family, batch=step_batch)
            cases += _compare(its_images, batches, trained, rounds, turn_seconds)
    return {"step_batch": step_batch, "boost": boost, "family": family, "cases": cases}


def _compare(
    images: Images, batches: Sequence[int], trained: Case | None, rounds: int, turn_seconds: float
) -> list[dict[str, Any]]:
    delivered, consumed = {batch: [] for batch in batches}, []
    with contextlib.ExitStack() as stack:
        step, count = None, 1
        if trained:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            with Remote(Weights) as writer:
                writer.call("write", trained, folder)
            step = stack.enter_context(Remote(Jaxboost, trained, folder))
            step.call("compile")
            step.call("step")
            count = max(1, math.ceil(turn_seconds / step.call("time_steps", 1)))
        loader = stack.enter_context(Remote(Loader, images))
        for _ in range(rounds):
            for batch in batches:
                delivered[batch].append(loader.call("deliver", batch, turn_seconds))
            if step:
                consumed.append(trained.batch / step.call("time_steps", count))
    consumption = statistics.median(consumed) if consumed else None
    return [
        {
            "name": images.name,
            "batch": batch,
            "delivered_images_per_second": statistics.median(values),
            "backbone": trained.model if trained else None,
            "consumed_images_per_second": consumption,
            "ratio": statistics.median(values) / consumption if consumption else None,
        }
        for batch, values in delivered.items()
    ]


def as_text(summary: dict[str, Any]) -> str:
    """A table of the cases."""
    lines = [f"{'':18} {'batch':>5} {'delivered/s':>12} {'backbone':>10} {'consumed/s':>11} {'ratio':>8}"]
    for case in summary["cases"]:
        line = f"{case['name']:18} {case['batch']:5} {case['delivered_images_per_second']:12.0f}"
        if case["backbone"]:
            line += f" {case['backbone']:>10} {case['consumed_images_per_second']:11.2f} {case['ratio']:8.1f}"
        lines.append(line)
    if any(case["backbone"] for case in summary["cases"]):
        lines.append(
            f"consumed: by a training step, batch {summary['step_batch']},"
            f" boost {summary['boost']}, {summary['family']}, float32"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    steps = flags.DEFINE_bool("steps", False, "time the training steps too (minutes)")
    rounds = flags.DEFINE_integer("rounds", 3, "turns of each", lower_bound=1)
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        check_figures(json_file.value, "--json")
        summary = compare(rounds=rounds.value, steps=steps.value)
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)

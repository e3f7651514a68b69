"""Times whole runs of several seeds: one after the other, and at once in one program (`train.seeds`).

    python -m benchmarks.seeds [--model vivit_tiny] [--seeds 5] [--rounds 3] [--json FILE]

Each turn is a process of its own that trains from the start to the result, on random volumes. `one` is a single run,
`alone` the seeds one after the other in one process, whose later runs find the compiled program, and `at_once` the same
seeds in one program. Compiled programs are not kept on disk.
"""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags

from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app

WAYS = ("one", "alone", "at_once")


def write_volumes(folder: pathlib.Path, count: int, side: int = 28) -> None:
    """Writes random volumes of two classes as .npy files."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = folder / ("normal", "sick")[number % 2] / f"{number}.npy"
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, rng.integers(0, 256, (side,) * 3, np.uint8))


class Trainer:
    """Trains in a process of its own."""

    def __init__(self, data: str, model: str, epochs: int, batch: int):
        from jaxboost.config import loading

        self._config = loading.load_config("quickstart")
        self._config.update_from_flattened_dict(
            {
                "data.source": "folder",
                "data.name": "random",
                "data.root": data,
                "data.cache": "off",
                "model.backbone": model,
                "boost.block": "random",
                "boost.family": "llama-tiny",
                "boost.layers": (0,),
                "boost.source": "",
                "boost.convert": False,
                "train.epochs": epochs,
                "train.max_steps": 0,
                "train.batch_size": batch,
                "train.compilation_cache": False,
                "eval.batch_size": 32,
                "eval.bootstrap": 20,
            }
        )

    def run(self, way: str, count: int) -> float:
        """Trains the seeds in one of WAYS, and returns the seconds."""
        from jaxboost.config import continuing
        from jaxboost.runs import seeds, train

        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            if way == "at_once":
                config = continuing.with_values(self._config, {"train.seeds": count})
                seeds.train_and_evaluate(seeds.of_config(config, root))
            else:
                for seed in range(1 if way == "one" else count):
                    train.train_and_evaluate(continuing.with_values(self._config, {"seed": seed}), root / str(seed))
        return time.perf_counter() - start


def compare(
    *, model: str = "vivit_tiny", seeds: int = 5, samples: int = 240, epochs: int = 3, batch: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Runs the comparison and returns what --json writes."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(pathlib.Path(folder), samples)
        for _ in range(rounds):
            for way in WAYS:
                with Remote(Trainer, folder, model, epochs, batch) as trainer:
                    seconds[way].append(trainer.call("run", way, seeds))
    median = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        "model": model,
        "seeds": seeds,
        "samples": samples,
        "epochs": epochs,
        "batch": batch,
        **{f"{way}_s": value for way, value in median.items()},
        "at_once_over_one": median["at_once"] / median["one"],
        "at_once_over_alone": median["at_once"] / median["alone"],
    }


def as_text(summary: dict[str, Any]) -> str:
    """The figures in lines."""
    seeds = summary["seeds"]
    return "\n".join(
        [
            f"{summary['model']}, {summary['samples']} volumes, {summary['epochs']} epochs, batch {summary['batch']}",
            f"one run                  {summary['one_s']:8.1f} s",
            f"{seeds} seeds, one by one    {summary['alone_s']:8.1f} s  {summary['alone_s'] / seeds:.1f} s each",
            f"{seeds} seeds at once        {summary['at_once_s']:8.1f} s  {summary['at_once_s'] / seeds:.1f} s each",
            f"at once / one run        {summary['at_once_over_one']:8.2f}",
            f"at once / one by one     {summary['at_once_over_alone']:8.2f}",
        ]
    )


if __name__ == "__main__":
    model = flags.DEFINE_string("model", "vivit_tiny", "a 3-D backbone")
    seeds = flags.DEFINE_integer("seeds", 5, "number of seeds", lower_bound=2)
    rounds = flags.DEFINE_integer("rounds", 3, "turns of each", lower_bound=1)
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        check_figures(json_file.value, "--json")
        summary = compare(model=model.value, seeds=seeds.value, rounds=rounds.value)
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)

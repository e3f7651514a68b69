"""How long the runs of a study will take: from finished runs, or from FLOPs."""

import dataclasses
import functools
import time
from collections.abc import Sequence

import numpy as np

from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.studies.plan import Plan, PlannedRun

# A training step costs about three forward passes; XLA reaches about this share of a plain matrix product's speed.
_PASSES, _SHARE = 3, 0.25
# Tracing a model takes seconds: after this time the other arms stay without an estimate.
_LEAST = 5.0  # seconds for the classifier of a baseline
_PATIENCE = 30.0  # seconds


def with_seconds(plan: Plan, *, flops: bool = False) -> Plan:
    """The plan with estimated seconds for the runs that are not finished.

    They are the mean of the arm's finished runs; else that of the finished runs of arms with the same backbone, by
    epoch; else, with `flops`, the FLOPs of the arm's training over the speed of a matrix product, which is a rough
    guess; else None.
    """
    done = [run for run in plan.runs if run.state == "finished" and run.seconds is not None]
    guess = _Guess()
    found = []
    for run in plan.runs:
        seconds = run.seconds if run.state == "finished" else _from_finished(run, done)
        if seconds is None and flops:
            seconds = guess.seconds(run)
        found.append(dataclasses.replace(run, seconds=seconds))
    return dataclasses.replace(plan, runs=tuple(found))


class _Guess:
    """Estimates runs from FLOPs, each arm once, and only as long as patience lasts."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + _PATIENCE
        self._by_arm: dict[str, float | None] = {}
        self._encoders: set[str] = set()

    def seconds(self, run: PlannedRun) -> float | None:
        if run.arm.name not in self._by_arm:
            encoder = _encoder(run.config)
            if encoder in self._encoders:
                # Another arm has encoded the images by then.
                self._by_arm[run.arm.name] = _LEAST
            else:
                self._by_arm[run.arm.name] = _from_flops(run) if time.monotonic() < self._deadline else None
            self._encoders |= {encoder} - {""}
        return self._by_arm[run.arm.name]


def _encoder(config: Config) -> str:
    """What identifies the frozen encoder of a baseline; "" for other configs."""
    is_encoded = "baseline" in config and config.baseline.features == "encoder"
    return repr(config.model.to_dict()) if is_encoded else ""


def remaining(runs: Sequence[PlannedRun]) -> tuple[float, int]:
    """Sum of the estimated seconds of the runs that are not finished, and how many of them have no estimate."""
    todo = [run.seconds for run in runs if run.state != "finished"]
    return sum(seconds for seconds in todo if seconds is not None), sum(seconds is None for seconds in todo)


def in_words(seconds: float | None) -> str:
    """A duration as text, such as "40 s", "12 min" or "3.5 h"; "?" if it is not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def table(plan: Plan) -> str:
    """The runs with their states and times, one a line, and the sum: the text of --dry_run."""
    rows = [("arm", "run", "state", "time")]
    for run in plan.runs:
        name = run.key.partition(":")[2]
        about = "" if run.state == "finished" or run.seconds is None else "~"
        label = f"seed {name}" if name.isdigit() else name
        rows.append((run.arm.name, label, run.state, about + in_words(run.seconds)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total, unknown = remaining(plan.runs)
    todo = sum(run.state != "finished" for run in plan.runs)
    left = f"about {in_words(total)}" + (f" and {unknown} runs of unknown length" if unknown else "")
    ending = f"{todo} to do: {left}" if todo else "nothing to do"
    lines.append(f"{len(plan.runs)} runs, {len(plan.runs) - todo} finished, {ending}")
    return "\n".join(lines)


def _from_finished(run: PlannedRun, done: Sequence[PlannedRun]) -> float | None:
    own = [other.seconds for other in done if other.arm.name == run.arm.name]
    if own:
        return float(np.mean([seconds for seconds in own if seconds is not None]))
    if run.arm.after:
        source = [other.seconds for other in done if other.arm.name == run.arm.after and other.seconds is not None]
        # About the time of an epoch.
        return float(np.mean(source)) / _epochs(run.config) if source else None
    alike = [
        other.seconds / _epochs(other.config)
        for other in done
        if other.seconds is not None and not other.arm.after and _kind(other.config) == _kind(run.config)
    ]
    return float(np.mean(alike)) * _epochs(run.config) if alike else None


def _kind(config: Config) -> tuple[object, ...]:
    """Runs of one kind take about as long for an epoch."""
    sections = {"baseline", "pneumollm"} & {*config}
    return (config.get("model", {}).get("backbone"), config.get("model", {}).get("image_size"), *sections)


def _epochs(config: Config) -> float:
    """Passes over the training split; folds train on most of it each."""
    epochs = config.get("train", {}).get("epochs", 1) * config.data.train_fraction
    return epochs * max(1, config.data.folds)


def _from_flops(run: PlannedRun) -> float | None:
    from jaxboost.analysis import describe

    try:
        images = _images(run.config)
        if not images:
            return None
        cost = describe.describe(run.config)["flops_per_image"]
    except UserError:
        return None
    if "baseline" in run.config:
        # Each image is encoded once, for all arms with the same encoder.
        return _LEAST + cost * images / (_SHARE * _speed())
    cost = cost["with_boost"]
    passes = 1.0 if run.arm.after else _PASSES * _epochs(run.config)
    return cost * images * passes / (_SHARE * _speed())


def _images(config: Config) -> int:
    """Number of training images; 0 if only reading a user's folder would tell."""
    from jaxboost.runs import datasets

    samples = datasets.describe(config).n_samples
    if not samples and not config.data.source:
        # The LIDC shapes: they are small, and computed on first use.
        samples = {name: len(split) for name, split in datasets.load(config).splits.items()}
    return samples.get("train", 0) or sum(samples.values())


@functools.cache
def _speed() -> float:
    """FLOP/s of a matrix product on this machine's processor: the best of some, as other programs may disturb it."""
    matrix, times = np.ones((1024, 1024), np.float32), []
    for _ in range(20):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(times)

"""How long the runs of a study will take: from finished runs, or from FLOPs."""

import dataclasses
import functools
import time
from collections.abc import Sequence

import numpy as np

from jaxboost.config.backbone import backbone_of
from jaxboost.config.continuing import flat
from jaxboost.config.types import Config
from jaxboost.data.sources.folder import contents
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError
from jaxboost.studies.plan import Plan, PlannedRun

# A training step costs about three forward passes; XLA reaches about this share of a plain matrix product's speed.
_PASSES, _SHARE = 3, 0.25
# A forward pass of a large encoder comes near that speed.
_ENCODER_SHARE = 0.75
_LEAST = 5.0  # seconds for the classifier of a baseline, and for a run whose encoder has encoded the images before
# Tracing a model takes seconds: after this time the other models stay without an estimate.
_PATIENCE = 30.0  # seconds
# Fields, besides those of `optim`, that do not change how long a run takes.
_WEIGHTS = (
    *("seed", "model.weights", "model.weights_source", "model.weights_convert", "boost.block", "boost.source"),
    *("boost.adapter", "boost.convert", "boost.control", "boost.control_seed", "llama.adapter", "clip.text"),
    *("baseline.text", "blip2.qformer", "blip2.qformer_source", "blip2.qformer_convert", "blip2.question"),
)


def with_seconds(plan: Plan, *, flops: bool = False) -> Plan:
    """The plan with estimated seconds for the runs that are not finished.

    They are the mean of the arm's finished runs; else that of the finished runs of arms with the same backbone, by
    epoch; else, with `flops`, the FLOPs of the arm's training over the speed of a matrix product, which is a rough
    guess, and too long for arms that train a part of the encoder: they need no backward pass below it; else None.
    """
    done = [run for run in plan.runs if run.state == "finished" and run.seconds is not None]
    guess = _Guess(plan.runs)
    found = []
    for run in plan.runs:
        seconds = run.seconds if run.state == "finished" else _from_finished(run, done)
        if seconds is None and flops:
            seconds = guess.seconds(run)
        found.append(dataclasses.replace(run, seconds=seconds))
    return dataclasses.replace(plan, runs=tuple(found))


class _Guess:
    """Estimates runs from FLOPs, each model once, and only as long as patience lasts."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._deadline = time.monotonic() + _PATIENCE
        self._known: dict[str, _Seconds | None] = {}
        # Runs that are finished have encoded their images.
        self._encoded = {_encoder(run.config) for run in runs if run.state == "finished"}

    def seconds(self, run: PlannedRun) -> float | None:
        model = _model(run)
        if model not in self._known:
            self._known[model] = _from_flops(run) if time.monotonic() < self._deadline else None
        found, encoder = self._known[model], _encoder(run.config)
        if found is None:
            return None
        # The first run that needs the encoded images makes them for the others.
        once = 0.0 if encoder in self._encoded else found.once
        self._encoded.add(encoder)
        return once + found.own


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seconds:
    """Estimated seconds: for the images that a frozen encoder encodes once for all runs, and for the run itself."""

    once: float
    own: float


def _model(run: PlannedRun) -> str:
    """Runs of equal text cost the same: they differ in weights alone, which need not be traced again."""
    fields = {name: value for name, value in flat(run.config).items() if not _is_of_weights(name)}
    return repr((bool(run.arm.after), fields))


def _is_of_weights(name: str) -> bool:
    return name in _WEIGHTS or name.partition(".")[0] == "optim"


def _encoder(config: Config) -> str:
    """What identifies the images that a frozen encoder has encoded; runs of equal text share them."""
    if "baseline" in config:
        fields = config.baseline
        return repr(("baseline", fields.features, fields.ndim, fields.slices, config.model.to_dict()))
    from jaxboost.models.boost import LAYER, has_block

    boost, backbone = config.get("boost"), backbone_of(config)
    # A model without a layer keeps only the first token, if that is CLS.
    grid = backbone is not None and not backbone.traits.cls_first
    layer = boost and (has_block(boost.kind) or boost.kind == LAYER or boost.path == "full")
    every = layer or (boost and grid and boost.kind != "none")
    return repr(
        (bool(every), "pneumollm" in config, "blip2" in config, config.model.to_dict(), config.data.train_fraction)
    )


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


def table(plan: Plan, *, jobs: int = 1) -> str:
    """The runs with their states and times, one a line, and the sum: the text of --dry_run.

    Args:
      plan: with seconds, see `with_seconds`.
      jobs: number of processes that share the runs.
    """
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
    shared = f" in {jobs} processes, {in_words(total)} divided by {jobs}" if jobs > 1 else ""
    left = f"about {in_words(total / jobs)}{shared}" + (f" and {unknown} runs of unknown length" if unknown else "")
    ending = f"{todo} to do: {left}" if todo else "nothing to do"
    lines.append(f"{len(plan.runs)} runs, {len(plan.runs) - todo} finished, {ending}")
    return "\n".join(lines)


def _from_finished(run: PlannedRun, done: Sequence[PlannedRun]) -> float | None:
    own = [other.seconds for other in done if other.arm.name == run.arm.name and other.seconds is not None]
    if own:
        return _typical(own, run.config)
    if run.arm.after:
        source = [other.seconds for other in done if other.arm.name == run.arm.after and other.seconds is not None]
        # About the time of an epoch.
        return float(np.mean(source)) / _epochs(run.config) if source else None
    alike = [
        other.seconds / _epochs(other.config)
        for other in done
        if other.seconds is not None and not other.arm.after and _kind(other.config) == _kind(run.config)
    ]
    return _typical(alike, run.config) * _epochs(run.config) if alike else None


def _typical(seconds: Sequence[float], config: Config) -> float:
    """The mean; the least for a frozen encoder, as the run that took longest has encoded the images for the others."""
    return min(seconds) if _is_encoded_once(config) else float(np.mean(seconds))


def _is_encoded_once(config: Config) -> bool:
    """Whether the run's images are encoded once, unless their tokens are too large."""
    if "baseline" in config:
        return True
    from jaxboost.runs import assembly

    fixed = assembly.fixed_tokens(config)
    return fixed is not None and fixed.most_gb > 0


def _kind(config: Config) -> tuple[object, ...]:
    """Runs of one kind take about as long for an epoch."""
    sections = {"baseline", "pneumollm", "clip", "blip2"} & {*config}
    features = (config.baseline.features, config.baseline.slices) if "baseline" in config else ()
    model = config.get("model", {})
    fields = ("backbone", "image_size", "slices", "slice_axes", "slice_size", "frozen", "last_block", "lora_rank")
    # LaVIN's LLM reads more tokens than PneumoLLM's.
    asks = bool(config.get("pneumollm", {}).get("question"))
    return (*(str(model.get(name)) for name in fields), asks, *sections, *features)


def _epochs(config: Config) -> float:
    """Passes over the training split; folds train on most of it each."""
    epochs = config.get("train", {}).get("epochs", 1) * config.data.train_fraction
    return epochs * max(1, config.data.folds)


def _from_flops(run: PlannedRun) -> _Seconds | None:
    from jaxboost.analysis import describe
    from jaxboost.analysis.training_cost import training_cost

    config = run.config
    try:
        train, count = _images(config)
        if not train:
            return None
        speed, of_encoder = _SHARE * _speed(), _ENCODER_SHARE * _speed()
        if "baseline" in config:
            # Each image is encoded once, for all arms with the same encoder.
            return _Seconds(once=describe.describe(config)["flops_per_image"] * count / of_encoder, own=_LEAST)
        cost = training_cost(config, count)
    except UserError:
        return None
    least = _LEAST if cost.once else 0.0
    passes = 1.0 if run.arm.after else _PASSES * _epochs(config)
    return _Seconds(once=cost.once * count / of_encoder, own=least + cost.each * train * passes / speed)


def _images(config: Config) -> tuple[int, int]:
    """Numbers of images for training and in all splits; (0, 0) if they are not known without reading them."""
    from jaxboost.runs import datasets

    if config.data.source == SOURCE:
        found = contents.read(config.data.root, masks=config.data.masks)
        shares = config.data.shares
        return found.train or round(found.count * shares[0] / sum(shares)), found.count
    samples = datasets.describe(config).n_samples
    if not samples and not config.data.source:
        # The LIDC shapes: they are small, and computed on first use.
        samples = {name: len(split) for name, split in datasets.load(config).splits.items()}
    count = sum(samples.values())
    return samples.get("train", 0) or count, count


@functools.cache
def _speed() -> float:
    """FLOP/s of a matrix product on this machine's processor: the best of some, as other programs may disturb it."""
    matrix, times = np.ones((1024, 1024), np.float32), []
    for _ in range(20):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(times)

"""Times the conversion of one layer of a 7B model against loading the whole checkpoint with PyTorch.

    python -m benchmarks.convert [--rounds 3] [--json FILE]

The checkpoint has the shapes and sizes of LLaMA-7B in float16 (13.5 GB in two safetensors files), but it is sparse:
only layer 31 has values and takes space on the disk. So the figures contain the disk time of that layer's 0.4 GB alone:
holes cost only work of the kernel, and reading a whole real checkpoint takes longer than shown here. Every turn is a
fresh process that has finished its imports, and starts without the checkpoint in the page cache.

- jaxboost: `jaxboost.convert` of layer 31, which writes a verified float32 block and waits for the disk to have it.
- torch: every tensor of every file into one state dict in memory, then the layer's tensors, as stored, to a file.
- torch_mmap: the same with the files mapped (the default of `safetensors.torch.load_file`), so that only the needed
  tensors are read.

The outputs are compared before any figure is printed. The whole checkpoint takes 14 GB of memory.
"""

import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app

LAYER = 31
SAMPLE_SECONDS = 0.02


class Jaxboost:
    """The package's own conversion."""

    def __init__(self, folder: str, layer: int):
        """See `compare`."""
        self._folder, self._layer = folder, layer

    def start(self) -> None:
        """Imports what `run` needs."""
        import jaxboost.convert.conversion  # noqa: F401

    def run(self, out: str) -> dict[str, float]:
        """Seconds and bytes read."""
        from jaxboost.convert import convert

        return _measured(lambda: convert(self._folder, str(self._layer), out))


class Torch:
    """Loads the whole checkpoint into memory and keeps one layer."""

    backend = "pread"

    def __init__(self, folder: str, layer: int):
        """See `compare`."""
        self._folder, self._layer = folder, layer

    def start(self) -> None:
        """Imports what `run` needs."""
        import safetensors.torch  # noqa: F401
        import torch  # noqa: F401

    def run(self, out: str) -> dict[str, float]:
        """Seconds and bytes read."""
        return _measured(lambda: self._load_and_save(out))

    def _load_and_save(self, out: str) -> dict[str, Any]:
        import safetensors.torch
        import torch

        state = {}
        for shard in sorted(pathlib.Path(self._folder).glob("*.safetensors")):
            state |= safetensors.torch.load_file(shard, backend=self.backend)
        prefix = f"model.layers.{self._layer}."
        torch.save({name: tensor for name, tensor in state.items() if name.startswith(prefix)}, out)
        return state


class TorchMapped(Torch):
    """Maps the checkpoint into memory."""

    backend = "mmap"


CONTENDERS = {"jaxboost": Jaxboost, "torch": Torch, "torch_mmap": TorchMapped}


class Outputs:
    """What the contenders wrote."""

    def check(self, block: str, files: list[str], layer: int) -> None:
        """Raises AssertionError if a file from PyTorch does not hold the values of the block."""
        import numpy as np
        import torch

        from jaxboost.convert.store import load_block

        weights = load_block(block, (layer,), final_norm=False).weights
        for file in files:
            state = torch.load(file, weights_only=True)
            for ours, theirs in {"v": "self_attn.v_proj", "down": "mlp.down_proj"}.items():
                expected = state[f"model.layers.{layer}.{theirs}.weight"].float().numpy()
                np.testing.assert_array_equal(np.asarray(weights[ours][0]).T, expected, err_msg=f"{file}: {theirs}")


def compare(make: Callable[[pathlib.Path], Any], *, layer: int, rounds: int) -> dict[str, Any]:
    """Runs the comparison and returns what --json writes.

    Args:
      make: writes a safetensors checkpoint in Hugging Face's layout into a folder.
      layer: number of the layer that is converted.
      rounds: turns of each contender.
    """
    turns = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as temporary:
        source = pathlib.Path(temporary) / "checkpoint"
        make(source)
        for number in range(rounds):
            # A separate folder, so that the disk holds the outputs of one round only.
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                outs = {name: str(pathlib.Path(folder) / name) for name in CONTENDERS}
                for name, contender in CONTENDERS.items():
                    _drop_from_cache(source)
                    turns[name].append(_turn(contender, source, layer, outs[name]))
                if number == 0:
                    with Remote(Outputs) as outputs:
                        outputs.call("check", outs["jaxboost"], [outs["torch"], outs["torch_mmap"]], layer)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    summary: dict[str, Any] = {"checkpoint_bytes": size, "layer": layer}
    for name, figures in turns.items():
        summary[name] = {key: statistics.median(turn[key] for turn in figures) for key in figures[0]}
        summary[name]["seconds_all"] = [turn["seconds"] for turn in figures]
    summary["ratio"] = summary["torch"]["seconds"] / summary["jaxboost"]["seconds"]
    summary["ratio_torch_mmap"] = summary["torch_mmap"]["seconds"] / summary["jaxboost"]["seconds"]
    return summary


def as_text(summary: dict[str, Any]) -> str:
    """A table of the contenders, and the ratios."""
    lines = [
        f"layer {summary['layer']} of a checkpoint of {summary['checkpoint_bytes'] / 1e9:.2f} GB",
        f"{'':15} {'seconds':>9} {'MB read':>9} {'peak MB':>9}",
    ]
    for name in CONTENDERS:
        result = summary[name]
        lines.append(f"{name:15} {result['seconds']:9.2f} {result['bytes_read'] / 1e6:9.0f} {result['peak_mb']:9.0f}")
    lines.append(f"jaxboost is {summary['ratio']:.2f} times as fast as torch")
    lines.append(f"jaxboost is {summary['ratio_torch_mmap']:.2f} times as fast as torch_mmap")
    return "\n".join(lines)


def _turn(contender: Callable[..., Any], source: pathlib.Path, layer: int, out: str) -> dict[str, float]:
    with Remote(contender, str(source), layer) as remote:
        remote.call("start")
        remote.reset_peak()
        return remote.call("run", out) | {"peak_mb": remote.peak_mb()}


def _drop_from_cache(folder: pathlib.Path) -> None:
    """Drops the checkpoint from the page cache, so that all turns start alike."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only clean pages are dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measured(work: Callable[[], object]) -> dict[str, float]:
    """Runs `work` in this process: its seconds, and the bytes of files that it read.

    These are the bytes that read calls returned (rchar, from the disk or the page cache) and the growth of the resident
    pages of mapped files (RssFile) up to their peak. Other files count too, such as modules that are
    imported late. The result of `work` is kept until the mapped pages are counted for the last time.
    """
    done = threading.Event()
    start_mapped = peak_mapped = _mapped_bytes()

    def watch() -> None:
        nonlocal peak_mapped
        last = False
        while not last:
            last = done.wait(SAMPLE_SECONDS)
            peak_mapped = max(peak_mapped, _mapped_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_read, start = _read_bytes(), time.perf_counter()
    try:
        held = work()
        seconds = time.perf_counter() - start
    finally:
        done.set()
        watcher.join()
    del held
    return {"seconds": seconds, "bytes_read": _read_bytes() - start_read + peak_mapped - start_mapped}


def _read_bytes() -> int:
    return int(pathlib.Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def _mapped_bytes() -> int:
    return int(pathlib.Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0]) * 1024


if __name__ == "__main__":
    rounds = flags.DEFINE_integer("rounds", 3, "turns of each contender", lower_bound=1)
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        """Prints the table and writes the figures."""
        check_figures(json_file.value, "--json")
        from tests.convert.checkpoints_7b import write_safetensors_7b

        summary = compare(write_safetensors_7b, layer=LAYER, rounds=rounds.value)
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)

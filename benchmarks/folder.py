"""Times the start on a user's folder: the first one, the next one, and one after a file has changed.

    python -m benchmarks.folder [--images 20000] [--json FILE]

It writes PNG files of 512 x 512 grey pixels in two class folders, 0.15 MB each, and loads them at 224 pixels with
`jaxboost.data.load`, each time in a fresh process that has finished its imports. Images are put together from
compressed bands, so that writing them takes little time and no two of them are alike. The files are in the page cache:
the time of a disk is not in the figures.

- decoding: what reading all files would take if each core did nothing else, from 200 files in one process.
- load: all that happens before training, with the search for nearly equal images, which is reported apart too.
- fingerprint: the digest of all samples, which a run takes.
- MB: the largest memory of the process and of those that it starts, without pages of mapped files, which the system
  takes back when it needs them. A quarter of the images shows how it depends on their number.
"""

import functools
import pathlib
import struct
import tempfile
import threading
import time
import zlib
from typing import Any

import numpy as np
from absl import flags
from scipy import ndimage

from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app

SIDE, SIZE, BANDS, POOL = 512, 224, 8, 64
DECODED = 200
SAMPLE_SECONDS = 0.05
STARTS = ("first", "second", "one file changed")


class Start:
    """One start on a folder."""

    def __init__(self, root: str, cache: str):
        """See `compare`."""
        self._root, self._cache = root, cache

    def ready(self) -> None:
        """Imports what `load` needs."""
        import os

        import scipy.cluster.hierarchy  # noqa: F401

        import jaxboost.runs.datasets  # noqa: F401

        os.environ["JAXBOOST_CACHE"] = self._cache

    def load(self) -> dict[str, float]:
        """Seconds of the parts, and the peak of the memory in MB."""
        from jaxboost import data
        from jaxboost.config import get_config
        from jaxboost.data.splits import near_duplicates
        from jaxboost.runs import datasets

        seconds = {"search": 0.0}
        find = near_duplicates.find

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = find(*arguments, **options)
            seconds["search"] = time.perf_counter() - start
            return found

        near_duplicates.find = timed
        config = get_config()
        config.data.source = "folder"
        with _Memory() as memory:
            start = time.perf_counter()
            dataset = data.load("bench", source="folder", root=self._root, size=SIZE)
            seconds["load"] = time.perf_counter() - start
            near_duplicates.find = find
            start = time.perf_counter()
            digest = datasets.fingerprint(dataset, config)["data"]
            seconds["fingerprint"] = time.perf_counter() - start
        return {**seconds, "mb": memory.peak_mb, "images": len(dataset.splits["all"]), "digest": digest}

    def decode(self) -> float:
        """Seconds of one core for each image."""
        from jaxboost.data.sources.folder import samples

        paths = sorted(pathlib.Path(self._root).glob("*/*.png"))[:DECODED]
        read = functools.partial(samples.read, reading=samples.Reading(ndim=2, size=SIZE))
        read(samples.Item(paths[0]))
        start = time.perf_counter()
        for path in paths:
            read(samples.Item(path))
        return (time.perf_counter() - start) / len(paths)


class _Memory:
    """Watches the memory of this process and its children that is not mapped from files."""

    def __enter__(self) -> "_Memory":
        self.peak_mb, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_mb = max(self.peak_mb, sum(_anonymous_mb(pid) for pid in _family()))


def _family() -> list[str]:
    found = ["self"]
    for path in pathlib.Path("/proc/self/task").glob("*/children"):
        try:
            found += path.read_text().split()
        except OSError:
            continue
    return found


def _anonymous_mb(pid: str) -> float:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        return 0.0


@functools.cache
def _bands() -> list[tuple[bytes, bytes]]:
    """Bands of PNG rows: as they are, and compressed so that they can follow each other in any order."""
    rng, found = np.random.default_rng(0), []
    for _ in range(POOL):
        smooth = ndimage.gaussian_filter(rng.normal(size=(SIDE // BANDS, SIDE)), 8)
        smooth = (smooth - smooth.min()) / np.ptp(smooth) * 235
        values = np.clip(smooth + rng.normal(size=smooth.shape) * 4, 0, 255).astype(np.uint8)
        # Each row is preceded by its filter: none.
        rows = np.pad(values, ((0, 0), (1, 0))).tobytes()
        packer = zlib.compressobj(6, wbits=-15)
        found.append((rows, packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)))
    return found


def write_image(path: pathlib.Path, seed: int) -> None:
    """Writes a PNG file whose bands are drawn by `seed`."""
    chosen = [_bands()[number] for number in np.random.default_rng(seed).integers(0, POOL, BANDS)]
    check = zlib.adler32(b"".join(rows for rows, _ in chosen))
    packed = b"\x78\x9c" + b"".join(packed for _, packed in chosen) + b"\x03\x00" + struct.pack(">I", check)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in chunks:
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(name + content)))


def compare(count: int, folder: pathlib.Path) -> dict[str, Any]:
    """Runs the starts on `count` images below `folder`, and returns what --json writes of them."""
    root, cache = folder / "images", folder / "cache"
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, number)
    found: dict[str, Any] = {"images": count}
    with Remote(Start, str(root), str(cache)) as start:
        found["decoding"] = start.call("decode") * count / cores()
    for name in STARTS:
        if name == STARTS[-1]:
            write_image(path, count)
        with Remote(Start, str(root), str(cache)) as start:
            start.call("ready")
            found[name] = start.call("load")
    digests = [found[name].pop("digest") for name in STARTS]
    assert digests[0] == digests[1] != digests[2], digests
    return found


def cores() -> int:
    """The cores that decode."""
    from jaxboost.data import decoding

    return decoding.cores()


def as_text(summary: dict[str, Any]) -> str:
    """A table of the starts."""
    lines = [f"{'images':>7} {'start':17} {'load s':>8} {'search s':>9} {'fingerprint s':>14} {'MB':>6}"]
    for case in summary["cases"]:
        for name in STARTS:
            each = case[name]
            times = f"{each['load']:8.2f} {each['search']:9.2f} {each['fingerprint']:14.2f} {each['mb']:6.0f}"
            lines.append(f"{case['images']:7} {name:17} {times}")
        decoded = case["first"]["load"] - case["first"]["search"]
        ratio = decoded / case["decoding"]
        lines.append(
            f"decoding alone on {summary['cores']} cores: {case['decoding']:.1f} s; the first start: {ratio:.2f} x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    images = flags.DEFINE_integer("images", 20_000, "files of the larger folder", lower_bound=100)
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        check_figures(json_file.value, "--json")
        summary: dict[str, Any] = {"cores": cores(), "cases": []}
        for count in (images.value // 4, images.value):
            with tempfile.TemporaryDirectory() as folder:
                summary["cases"].append(compare(count, pathlib.Path(folder)))
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)

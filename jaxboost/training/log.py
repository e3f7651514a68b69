"""The log of a running run: metrics.jsonl, TensorBoard files, log lines, and a progress bar on a terminal."""

import contextlib
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from jaxboost import processes
from jaxboost.io import set_aside, to_json, write_text, writing

METRICS = "metrics.jsonl"
BOARD = "tensorboard"
_FLUSH_SECONDS = 10.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch: tensorboardX imports it where it is installed, which takes a second, and needs it for no number."""
    hidden = "torch" not in sys.modules
    if hidden:
        # Then an import raises ImportError.
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        if hidden:
            sys.modules.pop("torch", None)


class MetricsLog:
    """Appends records {"step": ..., name: value, ...} to metrics.jsonl and to TensorBoard event files.

    Of several processes only the first writes.

    Args:
      workdir: folder of the run.
      resume_step: the step of the checkpoint from which the run is resumed, or 0. Later records are removed. A file
        with lines that are no records is set aside, and its records are kept.
      validated: False if the validation after that step is repeated; its record is removed too.
      kept: gives the end of an error message: which checkpoint is intact.

    Attributes:
      seconds: the time of the last record that the file had, see `Clock.record`; 0 if it had none.

    Raises:
      UserError: a file cannot be written; also in `write`.
    """

    def __init__(
        self, workdir: pathlib.Path, resume_step: int, *, validated: bool = True, kept: Callable[[], str] = str
    ):
        self._path, self._kept = workdir / METRICS, kept
        self.seconds = 0.0
        self._writes = processes.is_first()
        if not self._writes:
            return
        with writing(self._path, kept):
            if self._path.exists():
                lines, self.seconds = _kept_lines(self._path, resume_step, validated)
                write_text(self._path, "".join(f"{line}\n" for line in lines))
            self._file = self._path.open("a", encoding="utf-8")
        with writing(workdir / BOARD, kept):
            self._board = _Board(workdir / BOARD, purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one record; a value is a number, or None if it is not known."""
        if not self._writes:
            return
        with writing(self._path, self._kept):
            self._file.write(to_json({"step": step, **values}) + "\n")
            self._file.flush()
        with writing(self._board.folder, self._kept):
            self._board.add(step, {name: value for name, value in values.items() if value is not None})

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._writes:
            return
        # An error that is being raised says more than the errors on closing that follow from it.
        failed = error[0] is not None
        for file, path in ((self._file, self._path), (self._board, self._board.folder)):
            with contextlib.suppress(OSError) if failed else writing(path, self._kept):
                file.close()


class _Board:
    """A TensorBoard event file.

    It replaces tensorboardX's `SummaryWriter`, which writes in a thread: if a write fails, the thread ends with a
    traceback, and training waits for it forever.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        # Imported late: a mistake in a command should be reported at once.
        with _without_torch():
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2

        messages: Any = event_pb2
        self.folder = folder
        self._event, self._scalar = messages.Event, summary.scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(folder / "events"))
        # Hides events that were written after the checkpoint from which the run is resumed.
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._flushed = -math.inf
        self._write(messages.Event(step=purge_step, session_log=start))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Adds the values of a step."""
        self._write(*(self._event(step=step, summary=self._scalar(name, value)) for name, value in values.items()))

    def _write(self, *events: Any) -> None:
        for event in events:
            event.wall_time = time.time()
            self._file.write_event(event)
        # A flush waits for the disk.
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _kept_lines(path: pathlib.Path, resume_step: int, validated: bool) -> tuple[list[str], float]:
    """The records of metrics.jsonl that are kept, and the time of the last one, kept or not.

    A file with other lines than records is set aside.
    """
    if not path.is_file():
        set_aside(path)
        return [], 0.0
    content = path.read_bytes()
    # If the process was killed, the last line may be incomplete.
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records = [(line, _record(line)) for line in lines]
    if any(record is None for _, record in records):
        set_aside(path)
    kept = [line.decode() for line, record in records if record and _is_before(record, resume_step, validated)]
    return kept, max((_seconds(record) for _, record in records if record), default=0.0)


def _seconds(record: dict[str, Any]) -> float:
    """The time of a record; 0 for one of an earlier version, or for what is no time."""
    found = record.get("seconds")
    return found if isinstance(found, float) and 0 <= found < math.inf else 0.0


def _is_before(record: dict[str, Any], resume_step: int, validated: bool) -> bool:
    return record["step"] < resume_step or (record["step"] == resume_step and (validated or "train_loss" in record))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if there is none."""
    try:
        record = json.loads(line.decode())
        return record if type(record["step"]) is int else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


_bars_off = False


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Inside the `with` block runs show neither a bar nor a line for each log interval: a study has its own bar."""
    global _bars_off
    before, _bars_off = _bars_off, True
    try:
        yield
    finally:
        _bars_off = before


class ProgressBar:
    """On a terminal a bar with loss, images/s and time left; else plain log lines; nothing in `without_bars`."""

    def __init__(self, first_step: int, last_step: int):
        self._terminal = sys.stderr.isatty() and not _bars_off and processes.is_first()
        self._lines = not (self._terminal or _bars_off)
        self._last_step = last_step
        self._bar = tqdm.tqdm(total=last_step, initial=first_step, unit="step", disable=not self._terminal)
        self._redirect = logging_redirect_tqdm([logging.getLogger("jaxboost")])

    def __enter__(self) -> "ProgressBar":
        if self._terminal:
            self._redirect.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._terminal:
            self._redirect.__exit__(*error)
        self._bar.close()

    def advance(self, steps: int) -> None:
        """Counts steps."""
        self._bar.update(steps)

    def report(self, step: int, *, loss: float, images_per_second: float | None) -> None:
        """Shows the figures after a step; the rate is None if it was not measured."""
        text = f"loss {loss:.4f}" + (f", {images_per_second:.0f} images/s" if images_per_second else "")
        if self._terminal:
            self._bar.set_postfix_str(text)
        elif self._lines:
            logger.info("step %d/%d: %s", step, self._last_step, text)

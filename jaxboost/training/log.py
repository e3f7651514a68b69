"""What a run tells while it works: metrics.jsonl, TensorBoard files, log lines, and a progress bar on a terminal."""

import json
import logging
import pathlib
import sys
from typing import Any

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from jaxboost.io import to_json, write_text
from jaxboost.training.workdir import BOARD, set_aside

METRICS = "metrics.jsonl"

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends records {"step": ..., name: value, ...} to metrics.jsonl and to TensorBoard event files.

    Args:
      workdir: folder of the run.
      resume_step: records after this step, left by a run that was cut off later than its checkpoint, are dropped. A
        file with lines that are no records is set aside, and its records are kept.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        # Imported late: it loads torch where that is installed, which a mistaken command should not wait for.
        import tensorboardX

        path = workdir / METRICS
        if path.exists():
            kept = _kept_lines(path, resume_step)
            write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(workdir / BOARD), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one record; a value is a number, or None where there is none."""
        self._file.write(to_json({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        self._board.close()


def _kept_lines(path: pathlib.Path, resume_step: int) -> list[str]:
    """The records of metrics.jsonl up to a step; a file with anything else between them is set aside."""
    if not path.is_file():
        set_aside(path)
        return []
    content = path.read_bytes()
    # The last line of a killed run may be cut off in the middle.
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records = {line: _step_of(line) for line in lines}
    if None in records.values():
        set_aside(path)
    return [line.decode() for line in lines if (step := records[line]) is not None and step <= resume_step]


def _step_of(line: bytes) -> int | None:
    """The step of a line that is a record, else None."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int else None


class ProgressBar:
    """A bar with loss, images/s and time left on a terminal; elsewhere plain log lines."""

    def __init__(self, first_step: int, last_step: int):
        self._terminal = sys.stderr.isatty()
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

    def advance(self) -> None:
        """Counts one step."""
        self._bar.update(1)

    def report(self, step: int, *, loss: float, images_per_second: float | None) -> None:
        """Shows the state after a step; the rate is None where it was not measured."""
        text = f"loss {loss:.4f}" + (f", {images_per_second:.0f} images/s" if images_per_second else "")
        if self._terminal:
            self._bar.set_postfix_str(text)
        else:
            logger.info("step %d/%d: %s", step, self._last_step, text)

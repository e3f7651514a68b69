"""Signals inside a run of the test's process, and what a run finds."""

import json
import pathlib
import signal

from jaxboost.runs.result import VARYING
from tests.metrics import records


def outcome(folder: pathlib.Path) -> dict:
    """All that a run finds, without its times."""
    result = json.loads((folder / "result.json").read_text())
    predictions = {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}
    return {"result": {**result, **dict.fromkeys(VARYING)}, "records": records(folder), "predictions": predictions}


def send_in(monkeypatch, owner, name, *, call=1, after=False):
    """SIGTERM comes in a call of a function, before or after its work."""
    function, calls = getattr(owner, name), []

    def with_signal(*arguments, **options):
        calls.append(1)
        if len(calls) != call:
            return function(*arguments, **options)
        if after:
            value = function(*arguments, **options)
            signal.raise_signal(signal.SIGTERM)
            return value
        signal.raise_signal(signal.SIGTERM)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, with_signal)

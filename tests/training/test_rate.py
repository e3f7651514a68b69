"""The images per second of a record."""

import types

from jaxboost.training import loop
from jaxboost.training.monitor import StepFigures


def test_the_rate_is_measured_after_the_device_has_finished():
    """Steps run asynchronously: before their losses are there, the device may not have done them."""
    calls, written = [], []

    def fetch():
        calls.append("fetch")
        return [StepFigures(number=1, loss=0.5, grad_norm=1.0)]

    record = types.SimpleNamespace(
        losses=types.SimpleNamespace(fetch=fetch), write_steps=lambda *arguments: written.append(arguments)
    )
    rate = types.SimpleNamespace(measure=lambda number: calls.append("measure") or 10.0)
    usage = types.SimpleNamespace(record=lambda images_per_second: {"mfu": images_per_second / 100})
    bar = types.SimpleNamespace(report=lambda *_, **figures: written.append(figures))
    loop._write([record, record], 1, rate, usage, bar)
    assert calls == ["fetch", "fetch", "measure"]
    # Each run has its own rate; together they use the device.
    assert [arguments[2:] for arguments in written[:2]] == [(10.0, {"mfu": 0.2})] * 2
    assert written[2] == {"loss": 0.5, "images_per_second": 20.0}

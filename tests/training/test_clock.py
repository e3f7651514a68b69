"""Where a run's seconds go, with a clock that the test turns."""

import json

import pytest

from jaxboost.training.clock import PARTS, Clock
from jaxboost.training.log import MetricsLog


class Hands:
    """The time that a test sets."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def run(hands):
    """A start: each part takes as many seconds as its place in PARTS, and evaluation holds a checkpoint of 100."""
    clock = Clock(hands)
    hands.time += 1
    clock.begin("step")
    with clock.of("compile"):
        hands.time += 2
    with clock.of("data"):
        hands.time += 3
    hands.time += 4
    with clock.of("evaluation"):
        hands.time += 2
        with clock.of("checkpoints"):
            hands.time += 100
        hands.time += 3
    return clock


def test_each_second_belongs_to_one_part():
    hands = Hands()
    clock = run(hands)
    expected = dict(zip(PARTS, (1, 2, 3, 4, 5, 100, 0), strict=True))
    assert clock.parts() == expected
    assert clock.seconds() == 115
    hands.time += 0.004
    assert clock.record() == {"seconds": 115.0, **{f"seconds_{name}": float(value) for name, value in expected.items()}}
    with pytest.raises(KeyError), clock.of("lunch"):
        hands.time += 7
    assert clock.parts()["step"] == pytest.approx(4.004)


def test_earlier_starts_count():
    first, second = run(Hands()), run(Hands())
    second.add_earlier(first.seconds(), first.parts())
    second.lose(20.0)
    assert second.parts() == {part: 2 * value for part, value in first.parts().items()} | {"lost": 20.0}
    assert second.seconds() == 2 * 115 + 20


@pytest.mark.parametrize("parts", [{}, {"start": 5.0, "lunch": 7.0}])
def test_what_an_earlier_version_did_not_divide(parts):
    """The whole is known, and no part is made up."""
    clock = run(Hands())
    clock.add_earlier(12.0, parts)
    assert clock.record() == {"seconds": 127.0}
    assert clock.parts() == {}


@pytest.mark.parametrize(("resume", "kept"), [(2, [1, 2]), (0, [])])
def test_the_log_knows_when_its_last_record_was_written(resume, kept, tmp_path):
    lines = [{"step": step, "train_loss": 1.0, "seconds": 10.0 * step} for step in (1, 2, 3)]
    # The record of an earlier version, and a damaged one.
    lines += [{"step": 4}, {"step": 5, "seconds": "50"}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with MetricsLog(tmp_path, resume) as log:
        assert log.seconds == 30.0
    found = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == kept
    (tmp_path / "metrics.jsonl").unlink()
    with MetricsLog(tmp_path, 0) as log:
        assert log.seconds == 0.0

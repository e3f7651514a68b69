"""What process 0 decides for all, without sockets and clocks."""

import pytest

from jaxboost.processes.agreement import Desk

NAMES = ["process 0 of 3 (a, pid 1)", "process 1 of 3 (b, pid 2)", "process 2 of 3 (c, pid 3)"]


def desk():
    return Desk(NAMES, 0.0, patience=10.0, stuck=60.0)


def end(how, line="", code=0, signal=0):
    return {"kind": "end", "how": how, "line": line, "code": code, "signal": signal}


def gather(name, value, number=0):
    return {"kind": "gather", "number": number, "name": name, "value": value}


def test_values_are_gathered_in_the_order_of_the_processes():
    all_of_us = desk()
    assert all_of_us.take(2, gather("x", "c"), 1.0) == []
    assert all_of_us.take(0, gather("x", "a"), 1.0) == []
    answer = {"kind": "gathered", "number": 0, "values": ["a", "b", "c"]}
    # Process 0 last: it ends with its process.
    assert all_of_us.take(1, gather("x", "b"), 1.0) == [(2, answer), (1, answer), (0, answer)]


def test_processes_that_come_apart_end():
    all_of_us = desk()
    all_of_us.take(0, gather("result", None), 1.0)
    posts = all_of_us.take(1, gather("lock", None), 1.0)
    assert [index for index, _ in posts] == [2, 1, 0]
    assert posts[0][1]["code"] == 2
    assert f"{NAMES[0]} at 'result', {NAMES[1]} at 'lock'" in posts[0][1]["line"]


def test_all_stop_after_the_last_point_that_any_has_passed():
    all_of_us = desk()
    halt = {"kind": "halt", "signal": 15}
    assert all_of_us.take(1, {"kind": "stop", "signal": 15}, 1.0) == [(2, halt), (1, halt), (0, halt)]
    # Another one's signal changes nothing.
    assert all_of_us.take(2, {"kind": "stop", "signal": 1}, 1.0) == []
    assert all_of_us.take(0, {"kind": "at", "point": 7}, 1.0) == []
    assert all_of_us.take(1, {"kind": "at", "point": 9}, 1.0) == []
    posts = all_of_us.take(2, {"kind": "at", "point": 8}, 1.0)
    assert {index for index, _ in posts} == {0, 1, 2}
    assert all(message == {"kind": "stop_at", "point": 10} for _, message in posts)


def test_a_failure_ends_the_others_with_its_message():
    posts = desk().take(1, end("failed", "no file", 2), 1.0)
    assert posts[0] == (1, {"kind": "bye"})
    assert [index for index, _ in posts[1:]] == [2, 0]
    assert posts[1][1] == {"kind": "ended", "how": "failed", "line": f"{NAMES[1]}: no file", "code": 2, "signal": 0}


def test_only_the_first_failure_counts():
    all_of_us = desk()
    all_of_us.take(1, end("failed", "no file", 2), 1.0)
    assert all_of_us.take(0, end("failed", "lost the other", 1), 1.0) == [(0, {"kind": "bye"})]
    assert all_of_us.closed(2) == []


def test_a_signal_is_passed_on_and_the_end_of_the_work_is_not():
    posts = desk().take(2, end("stopped", signal=15), 1.0)
    assert [(index, message["kind"]) for index, message in posts] == [(2, "bye"), (1, "ended"), (0, "ended")]
    assert posts[1][1]["signal"] == 15
    assert desk().take(2, end("done"), 1.0) == [(2, {"kind": "bye"})]


def test_a_process_that_is_gone_without_a_word_is_named():
    posts = desk().closed(1)
    assert {index for index, _ in posts} == {0, 1, 2}
    assert posts[0][1]["line"].startswith(f"{NAMES[1]} is gone: it was killed or has crashed: run the same command")
    assert posts[0][1]["code"] == 1
    finished = desk()
    finished.take(1, end("done"), 1.0)
    assert finished.closed(1) == []


def test_a_silent_process_is_lost():
    all_of_us = desk()
    for index in (0, 2):
        all_of_us.take(index, {"kind": "beat", "point": 0}, 8.0)
    assert all_of_us.tick(10.0) == []
    posts = all_of_us.tick(10.1)
    assert f"{NAMES[1]} has not answered for 10 s" in posts[0][1]["line"]


@pytest.mark.parametrize(
    ("points", "lost"),
    [
        ((5, 4, 5), True),
        # All wait for something else, such as a disk.
        ((4, 4, 4), False),
        # Its first step is still compiled, which may take longer.
        ((5, 0, 5), False),
    ],
)
def test_a_process_that_stays_behind_is_stuck(points, lost):
    all_of_us = desk()
    for now in range(0, 62, 5):
        for index, point in enumerate(points):
            all_of_us.take(index, {"kind": "beat", "point": point}, float(now))
    posts = all_of_us.tick(61.0)
    assert bool(posts) == lost
    if lost:
        assert f"{NAMES[1]} has not gone on for 60 s, and the others wait for it" in posts[0][1]["line"]


def beats(all_of_us, now, points=(0, 0, 0)):
    for index, point in enumerate(points):
        all_of_us.take(index, {"kind": "beat", "point": point}, float(now))


def test_a_first_step_that_never_ends():
    all_of_us = desk()
    for now in range(0, 380, 5):
        beats(all_of_us, now, (5, 0, 5) if now else (0, 0, 0))
        found = all_of_us.tick(float(now))
        # Six times as long as a later step, from when the first of them had passed one.
        assert bool(found) == (now > 365)
        if found:
            assert f"{NAMES[1]} has not gone on for 360 s" in found[0][1]["line"]
            break


def test_a_process_that_does_not_come_to_a_gathering():
    all_of_us, told = desk(), []
    all_of_us.take(2, {"kind": "work", "what": "reads the data"}, 0.0)
    for index in (0, 1):
        all_of_us.take(index, gather("x", 1), 1.0)
    for now in range(0, 300, 5):
        beats(all_of_us, now)
        told += all_of_us.tick(float(now))
    line = f"at 'x' for 9 s, waiting for {NAMES[2]}, which reads the data"
    assert told == [(0, {"kind": "warning", "line": line})]
    # Now it does nothing any more.
    all_of_us.take(2, {"kind": "work", "what": ""}, 300.0)
    for now in range(300, 370, 5):
        beats(all_of_us, now)
        posts = all_of_us.tick(float(now))
        assert bool(posts) == (now > 360)
    assert f"{NAMES[2]} has not come to 'x' for 65 s, where the others wait" in posts[0][1]["line"]


def test_a_gathering_that_is_complete_is_over():
    all_of_us = desk()
    for index in range(3):
        all_of_us.take(index, gather("x", 1), 1.0)
    beats(all_of_us, 200)
    assert all_of_us.tick(200.0) == []

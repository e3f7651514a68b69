"""Processes that find each other and agree, as threads of one process that are connected as processes are."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import pytest

from jaxboost import stopping
from jaxboost.errors import UserError
from jaxboost.processes import hub, member, wire
from jaxboost.processes.group import Group
from jaxboost.processes.launch import Launch

LIMITS = dict(version="1", start_timeout=10.0, patience=5.0, stuck=60.0)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(index, count, ports, key="k"):
    return Launch(count=count, index=index, host="127.0.0.1", ports=ports, key=key, found_by="flags")


def joined(one, start_timeout=10.0, version="1"):
    """The group of a process, connected."""
    group = Group(one.index, one.count)
    connection, reader, group.names = member.connect(one, start_timeout=start_timeout, version=version)
    group.member = member.Member(
        connection, reader, group.names, patience=LIMITS["patience"], hear=group.hear, point=group.point
    )
    return group


@contextlib.contextmanager
def processes(count):
    """The groups of `count` processes."""
    ports = (free_port(),)
    door = hub.Hub(hub.listen(launch(0, count, ports)), launch(0, count, ports), **LIMITS)
    door.start()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        groups = list(pool.map(lambda index: joined(launch(index, count, ports)), range(count)))
        yield groups, pool, ports
        list(pool.map(lambda group: group.member.end("done"), groups))


def test_values_of_all_and_a_second_launch_at_the_same_port():
    with processes(3) as (groups, pool, ports):
        large = "x" * 300_000
        for value in (1, large):
            found = list(pool.map(lambda group, value=value: group.member.gather("n", [group.index, value]), groups))
            assert found == [[[0, value], [1, value], [2, value]]] * 3
        assert groups[0].names[1].startswith("process 1 of 3 (")
        with pytest.raises(UserError, match=r"refuses this process: process 1 of 3 \(.*\) is there already: another"):
            joined(launch(1, 3, ports))
        with pytest.raises(UserError, match="it belongs to another launch, of 2 processes"):
            joined(launch(1, 2, ports))
        with pytest.raises(UserError, match=r"process 0 cannot listen on port .* another launch may use it"):
            hub.listen(launch(0, 3, ports))


@pytest.mark.parametrize("asks", [[1], [0, 2]])
def test_all_stop_at_the_same_point(asks, monkeypatch):
    """Each process is at another point when one receives a signal; none knows where the others are."""
    monkeypatch.setattr("jaxboost.stopping.is_deferred", lambda: True)

    def run(group):
        for point in range(1, 3000):
            time.sleep(0.001 * (1 + group.index))
            received = 15 if group.index in asks and point > 20 else 0
            if signal := group.passes(received):
                return point, signal
        return None

    with processes(3) as (groups, pool, _):
        found = set(pool.map(run, groups))
    ((point, signal),) = found
    assert signal == 15
    assert point > 20


def test_a_port_that_another_launch_has_is_skipped():
    ports = (free_port(), free_port())
    other = launch(0, 2, ports[:1], key="other")
    hub.Hub(hub.listen(other), other, **LIMITS).start()
    mine = launch(0, 1, ports)
    # It goes on to the next port, and so do the processes that look for it.
    hub.Hub(hub.listen(mine), mine, **LIMITS).start()
    assert joined(mine).names[0].startswith("process 0 of 1")


def test_a_coordinator_that_does_not_answer():
    one = launch(1, 2, (free_port(),))
    with pytest.raises(UserError) as error:
        joined(one, start_timeout=0.3)
    for part in ("process 1 of 2 on ", "127.0.0.1, found by flags", "0 s", "refused", "--coordinator=HOST:PORT"):
        assert part in str(error.value)


def test_processes_that_do_not_come_are_named():
    ports = (free_port(),)
    door = hub.Hub(
        hub.listen(launch(0, 3, ports)), launch(0, 3, ports), version="1", start_timeout=0.3, patience=5, stuck=60
    )
    door.start()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for index in (0, 2):
            found = pool.submit(joined, launch(index, 3, ports))
            if index:
                break
        with pytest.raises(UserError, match=r"2 of 3 processes came to 127.0.0.1 within 0 s, not process 1: see what"):
            found.result()


def test_another_version_is_told_at_once():
    ports = (free_port(),)
    hub.Hub(hub.listen(launch(0, 2, ports)), launch(0, 2, ports), **LIMITS).start()
    with pytest.raises(UserError, match=r"^process 1 on \S+ has jaxboost 2, and process 0 has 1: install the same"):
        joined(launch(1, 2, ports), version="2")


def test_a_message_that_is_none_ends_its_process_alone():
    with processes(2) as (groups, pool, _):
        waits = pool.submit(groups[0].member.gather, "n", 1)
        groups[1].member.send({"kind": "gather"})
        deadline = time.monotonic() + 5
        while groups[0].verdict is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert groups[0].verdict[0].startswith(f"{groups[0].names[1]} is gone")
        groups[0].member.leave(15)
        with pytest.raises(stopping.Stopped):
            waits.result(5)


def test_the_bytes_of_a_stranger_change_nothing(monkeypatch):
    monkeypatch.setattr(hub, "GREETING_SECONDS", 0.3)
    ports = (free_port(),)
    door = hub.Hub(hub.listen(launch(0, 1, ports)), launch(0, 1, ports), **LIMITS)
    door.start()
    deep = b"[" * 4000
    greeting = json.dumps({"key": "k", "count": 1, "index": [0], "version": "1"}).encode()
    contents = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\2[]",
        b"\0\0\0\3{}}",
        len(deep).to_bytes(4) + deep,
        (200_000).to_bytes(4) + b"[" * 3000,
        b"\0\0\0\4\xff\xfe{}",
        # Nothing more comes.
        b"\0\0\1\0{",
        b"",
    ]
    with socket.create_connection(("127.0.0.1", ports[0])) as stranger:
        stranger.sendall(len(greeting).to_bytes(4) + greeting)
        assert b"there is no process [0]" in stranger.recv(1000)
    for content in contents:
        with socket.create_connection(("127.0.0.1", ports[0])) as stranger:
            stranger.sendall(content)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(10) == b""
    assert joined(launch(0, 1, ports)).member.gather("n", 1) == [1]


def test_messages_arrive_in_pieces():
    reader, sent = wire.Reader(), []
    one, other = socket.socketpair()
    with one, other:
        thread = threading.Thread(target=wire.send, args=(one, {"kind": "a"}))
        thread.start()
        thread.join()
        wire.send(one, {"kind": "b"})
        data = other.recv(1000)
    for position in range(len(data)):
        sent += reader.feed(data[position : position + 1])
    assert sent == [{"kind": "a"}, {"kind": "b"}]

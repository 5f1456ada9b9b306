"""Processes are threads here: the roll call knows only sockets. tests/processes has real ones."""

import contextlib
import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from lclm_jax.parallel import rendezvous as roll_call
from lclm_jax.parallel.rendezvous import PeerMonitor, ProcessInfo, StartError, ranks, rendezvous


@pytest.fixture
def meet(monkeypatch):
    """``meet(numbers, count, timeout)``: what each of the processes ``numbers`` got (watch or error), and losses."""
    monkeypatch.setattr(roll_call, "GRACE_SECONDS", 0.3)
    watches = []

    def start(numbers, count, timeout=10.0, counts=None):
        with contextlib.closing(socket.create_server(("", 0))) as server:
            port = server.getsockname()[1]
        lost = queue.Queue()

        def one(process):
            try:
                return rendezvous(process, timeout, 10.0, lambda what: lost.put((process.rank, what)))
            except StartError as error:
                return str(error)

        places = [ProcessInfo(f"localhost:{port}", n, (counts or {}).get(n, count), "test") for n in numbers]
        with ThreadPoolExecutor(len(places)) as pool:
            found = list(pool.map(one, places))
        watches.extend(watch for watch in found if not isinstance(watch, str))
        return found, lost

    yield start
    for watch in watches:
        watch.leave()


def test_the_missing_are_named_to_all(meet):
    found, _ = meet([0, 2], 5, timeout=0.6)
    for text in found:
        assert "processes 1, 3-4 of 5 did not connect to localhost:" in text


def test_a_missing_first_process_is_named(meet):
    (text,), _ = meet([1], 2, timeout=0.5)
    assert "process 1 of 2" in text and "did not reach process 0 at localhost:" in text


def test_two_of_one_number_and_two_counts_are_refused(meet):
    found, _ = meet([0, 1, 1], 3)
    assert all("two processes are number 1 of 3" in text for text in found)
    found, _ = meet([0, 1], 2, counts={1: 4})
    assert all("expects 4 processes, but process 0 expects 2" in text for text in found)


def test_a_death_is_told_to_all(meet):
    watches, lost = meet([0, 1, 2], 3)
    watches[2]._connections[0].socket.shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that was killed
    told = dict(lost.get(timeout=5) for _ in range(2 + 1))  # the "dead" one also notices, being alive
    assert told[0] == told[1] and told[0].startswith("process 2 of 3 (") and "exited unexpectedly" in told[0]


def test_an_error_is_told_after_a_while_and_a_farewell_is_none(meet):
    watches, lost = meet([0, 1, 2], 3)
    watches[1].leave()
    watches[2].leave("failed: disk full")
    rank, what = lost.get(timeout=5)
    assert rank == 0 and what.endswith("failed: disk full")
    assert lost.empty()


def test_the_port_is_free_for_jax_while_the_watch_goes_on(meet):
    watches, lost = meet([0, 1], 2)
    port = watches[1]._connections[0].socket.getpeername()[1]
    socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    assert lost.empty()


def test_strangers_are_not_counted(meet, monkeypatch):
    connect = socket.create_connection

    def after_a_stranger(address, timeout):
        connect(address).sendall(b"GET / HTTP/1.1\r\n\r\n")
        return connect(address, timeout)

    monkeypatch.setattr(socket, "create_connection", after_a_stranger)
    found, _ = meet([0, 1], 2)
    assert not any(isinstance(one, str) for one in found)


def test_ranks():
    assert ranks([1, 2, 3, 7]) == "1-3, 7"


def test_a_monitor_that_fails_says_so(monkeypatch, caplog):
    def broken(self):
        raise RuntimeError("what nobody foresaw")

    monkeypatch.setattr(PeerMonitor, "_listen", broken)
    monitor = PeerMonitor(ProcessInfo("localhost:1", 0, 2, "test"), ["a", "b"], {}, lambda what: None)
    monitor._thread.join(5)
    assert "no longer listened to (RuntimeError: what nobody foresaw)" in caplog.text

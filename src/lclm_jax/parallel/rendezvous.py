"""The rendezvous of the processes of a run before JAX starts, and a monitor of them afterwards.

JAX's own start-up ends every process with a stack trace when one is missing, and says not which; its heartbeats need
minutes to notice a death. So process 0 first collects a line from every other process, over TCP, on the port that JAX's
coordinator takes next, and the connections stay open: the operating system closes those of a process that dies.
"""

import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long a process may go on after another has reported an error: it may be about to report the same one."""
_TICK = 0.2


class StartError(LclmError):
    """The processes of a run could not connect to each other; the message names those that are missing."""


class ProcessInfo(NamedTuple):
    """What a process knows of itself before it has met the others."""

    coordinator: str
    """``host:port`` of process 0."""
    rank: int
    total: int
    source: str
    """Where this was read, for messages."""
    local_devices: list[int] | None = None
    """Accelerators of this machine that are this process's own; None: all."""


class Connection:
    """Lines of JSON over a socket."""

    def __init__(self, sock: socket.socket, lost_timeout: float) -> None:
        self.socket, self._buffer, self._lock = sock, b"", threading.Lock()
        # A machine that loses power closes nothing: the kernel probes silent connections.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        pace = max(1, int(lost_timeout / 4))
        for option, value in (
            ("TCP_KEEPIDLE", pace),
            ("TCP_KEEPINTVL", pace),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", int(lost_timeout * 1000)),
        ):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: object) -> None:
        """Send one line; a lost connection is noticed by the reader."""
        try:
            with self._lock:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            logger.debug("rendezvous: %s", error)

    def receive(self) -> list[JsonObject] | None:
        """The messages that have come, after the socket was found readable; None: the other end is gone."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):  # some other program found the port
            return None

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def rendezvous(
    process: ProcessInfo, start_timeout: float, lost_timeout: float, on_lost: Callable[[str], None]
) -> "PeerMonitor":
    """Wait until all processes have connected; then monitor them.

    Args:
        process: this process.
        start_timeout: seconds that process 0 waits for the others, and they for it.
        lost_timeout: seconds after which a silent machine counts as lost.
        on_lost: called, in a thread, with what happened when a process ends without saying that it is done.

    Raises:
        StartError: some process was late (the message names it), two have the same number, or the address
            cannot be used.
    """
    deadline = time.monotonic() + start_timeout
    if process.rank == 0:
        hosts, connections = _gather(process, deadline, lost_timeout)
    else:
        hosts, connections = _report(process, deadline, lost_timeout)
    return PeerMonitor(process, hosts, connections, on_lost)


class PeerMonitor:
    """Listens to the other processes; ``leave`` ends it."""

    def __init__(
        self, process: ProcessInfo, hosts: list[str], connections: dict[int, Connection], on_lost: Callable[[str], None]
    ) -> None:
        self._process, self._hosts, self._connections, self._on_lost = process, hosts, connections, on_lost
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rendezvous", daemon=True)
        self._thread.start()

    def leave(self, failure: str | None = None) -> None:
        """Tell the others that this process is done, or has failed, and stop listening."""
        if self._left.is_set():
            return
        self._left.set()
        for connection in self._connections.values():
            connection.send(
                **({"bye": True} if failure is None else {"failed": self._named(self._process.rank, failure)})
            )
        self._thread.join(timeout=10 * _TICK)
        if failure is None or self._process.rank:
            for connection in self._connections.values():
                connection.close()

    def outlast_peers(self) -> None:
        """After ``leave(failure)``: process 0 stays until the others have ended, as JAX aborts them when it goes."""
        deadline = time.monotonic() + 2 * GRACE_SECONDS
        for connection in self._connections.values() if self._process.rank == 0 else ():
            connection.socket.settimeout(max(_TICK, deadline - time.monotonic()))
            while connection.receive() is not None:
                pass

    def wait_for_cause(self, seconds: float) -> None:
        """Wait: an error of a collective comes before the news that another process has died, which explains it."""
        self._left.wait(seconds)

    def _named(self, rank: int, what: str) -> str:
        return f"process {rank} of {self._process.total} ({self._hosts[rank]}) {what}"

    def _watch(self) -> None:
        try:
            self._listen()
        except Exception as error:  # noqa: BLE001 - JAX's heartbeats watch on, only slower
            if not self._left.is_set():
                logger.warning(
                    "the other processes are no longer listened to (%s: %s); a lost one is noticed later",
                    type(error).__name__,
                    error,
                )

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection.socket, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._left.is_set():
                for key, _ in selector.select(_TICK):
                    messages = self._connections[key.data].receive()
                    if any("bye" in message for message in messages or ()):
                        selector.unregister(key.fileobj)
                    elif messages is None:
                        self._lost(
                            key.data,
                            self._named(key.data, "exited unexpectedly: killed, crashed or disconnected"),
                        )
                        return
                    elif messages:
                        grace = 0 if "lost" in messages[0] else GRACE_SECONDS
                        self._lost(key.data, str(next(iter(messages[0].values()))), grace)
                        return

    def _lost(self, source: int, what: str, grace: float = 0.0) -> None:
        """Pass on that a process is lost, heard from process ``source``, and act on it."""
        for rank, connection in self._connections.items():
            if rank != source:  # only process 0 has others to tell
                connection.send(**{"failed" if grace else "lost": what})
        if not self._left.wait(grace):
            self._on_lost(what)


def _gather(process: ProcessInfo, deadline: float, lost_timeout: float) -> tuple[list[str], dict[int, Connection]]:
    """Process 0: hosts of all processes, and the connections to the others."""
    present: dict[int, tuple[Connection, str]] = {}
    next_warning = time.monotonic() + 10
    with _listen_at(process) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(present) < process.total - 1:
            for key, _ in selector.select(_TICK):
                if key.data is None:
                    connection = Connection(listener.accept()[0], lost_timeout)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                else:
                    _receive_from(process, key.data, present, selector)
            missing = [rank for rank in range(1, process.total) if rank not in present]
            if missing and time.monotonic() > deadline:
                who = "process" if len(missing) == 1 else "processes"
                raise _refused(
                    f"{who} {ranks(missing)} of {process.total} did not connect to {process.coordinator} in time;"
                    f" read their logs, and check that all were started with the same address ({process.source})",
                    [connection for connection, _ in present.values()],
                )
            if missing and time.monotonic() > next_warning:
                next_warning += 30
                logger.warning(
                    "waiting at %s for processes %s of %d", process.coordinator, ranks(missing), process.total
                )
    hosts = [socket.gethostname(), *(present[rank][1] for rank in range(1, process.total))]
    for connection, _ in present.values():
        connection.send(hosts=hosts)
    return hosts, {rank: connection for rank, (connection, _) in present.items()}


def _receive_from(
    process: ProcessInfo,
    connection: Connection,
    present: dict[int, tuple[Connection, str]],
    selector: selectors.BaseSelector,
) -> None:
    """Record the line of one process, or that it has disconnected again."""
    messages = connection.receive()
    if messages is None or not all({"rank", "count", "host"} <= set(message) for message in messages):
        selector.unregister(connection.socket)
        connection.close()
        for rank in [rank for rank, (other, _) in present.items() if other is connection]:
            del present[rank]
        return
    for message in messages:
        rank, count, host = message["rank"], message["count"], str(message["host"])
        everyone = [connection, *(other for other, _ in present.values())]
        if count != process.total or not 0 < rank < count:
            raise _refused(
                f"process {rank} on {host} expects {count} processes, but process 0 expects"
                f" {process.total} ({process.source}); give all processes the same number",
                everyone,
            )
        if rank in present:
            raise _refused(
                f"two processes are number {rank} of {count}, on {present[rank][1]} and on {host}; give each its own"
                f" number ({process.source})",
                everyone,
            )
        present[rank] = (connection, host)


def _report(process: ProcessInfo, deadline: float, lost_timeout: float) -> tuple[list[str], dict[int, Connection]]:
    """Any other process: report to process 0 and wait for its answer."""
    host, _, port = process.coordinator.rpartition(":")
    patience = deadline - time.monotonic()
    while True:
        try:
            sock = socket.create_connection((host.strip("[]"), int(port)), timeout=max(1.0, patience))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise StartError(
                    f"process {process.rank} of {process.total} ({socket.gethostname()}) did not reach process 0 at"
                    f" {process.coordinator} in {patience:.0f} s ({error}); read the log of process 0, and check that"
                    f" this address leads to it ({process.source})"
                ) from error
            time.sleep(_TICK)
    connection = Connection(sock, lost_timeout)
    connection.send(rank=process.rank, count=process.total, host=socket.gethostname())
    # Process 0 may have begun to wait later than this one.
    sock.settimeout(patience + 10)
    answer = connection.receive()
    sock.settimeout(None)
    if not answer or "hosts" not in answer[0]:
        connection.close()
        told = answer[0]["error"] if answer and "error" in answer[0] else "process 0 ended before all were there"
        raise StartError(told)
    return answer[0]["hosts"], {0: connection}


def _refused(message: str, connections: Iterable[Connection]) -> StartError:
    """The error, after the waiting processes were told."""
    for connection in connections:
        connection.send(error=message)
        connection.close()
    return StartError(message)


def _listen_at(process: ProcessInfo) -> socket.socket:
    port = int(process.coordinator.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise StartError(
            f"process 0 cannot listen on port {port} ({error.strerror}); name a free one in the coordinator's address,"
            " or in JAX_COORDINATOR_PORT where a cluster gives the address"
        ) from error


def ranks(numbers: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

"""One process at a time writes a run's folder in a bucket: an object that its holder renews.

There are no locks in a bucket, but writes under a condition: an object is written only if it is still the one that was
read. The holder writes the object ``.lock`` anew every few seconds. Who comes later waits until that happens, and is
refused; or until the lease has run out, and takes over. No clocks of two machines are compared. A holder that died on
the same machine is recognised at once.

tensorstore, which writes the checkpoints, has these writes for gs:// and s3://, with the same credentials.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import tensorstore as ts

from lclm_jax.errors import LclmError
from lclm_jax.paths import StoreError, kvstore_spec, store_error
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

NAME = ".lock"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_LOST = 1
"""Exit status of a process whose folder another one has taken over; launchers do not restart it."""


class Taken(LclmError):
    """Another process holds the folder."""


class Lease:
    """The lock of one folder; ``hold`` is the way to use it.

    Args:
        store: where ``NAME`` lies.
        folder: for messages.
        lease_seconds: a holder that has not renewed for so long is taken to be dead.
        renew_seconds: between two renewals.
    """

    def __init__(
        self,
        store: ts.KvStore,
        folder: Path,
        lease_seconds: float = LEASE_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
    ):
        self._store, self._folder, self._lease, self._renew = store, folder, lease_seconds, renew_seconds
        self._generation: bytes | None = None
        self._own = {**_this_process(), "id": uuid.uuid4().hex}

    @contextlib.contextmanager
    def hold(self, lost: Callable[[str], object] | None = None) -> Iterator[None]:
        """Hold the folder while the block runs.

        Args:
            lost: called with a message if another process has taken over meanwhile; None: end this process.

        Raises:
            Taken: another process holds it.
            StoreError: the bucket cannot be used.
        """
        self._acquire()
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over, lost or _end), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._release()

    def _acquire(self) -> None:
        stamp, holder = self._read()
        told = False
        began = time.monotonic()
        while holder is not None and (alive := _is_alive(holder)) is not False:
            if alive:
                raise self._taken(holder)
            if not told:
                logger.info("%s: waiting to see whether its last writer (%s) is alive", self._folder, _shown(holder))
                told = True
            if time.monotonic() - began > self._lease:
                logger.warning("%s: its last writer (%s) has not renewed its lock for %g s; taking over", self._folder,
                               _shown(holder), self._lease)  # fmt: skip
                break
            time.sleep(min(1.0, self._renew / 4))
            seen, now = self._read()
            if now is not None and seen != stamp:
                raise self._taken(now)
            stamp, holder = seen, now
        written = self._write(stamp)
        if written is None:
            raise self._taken(self._read()[1])
        self._generation = written

    def _keep(self, over: threading.Event, lost: Callable[[str], object]) -> None:
        """Renew until ``over``. While the store does not answer nobody else can take the folder either."""
        while not over.wait(self._renew):
            assert self._generation is not None
            try:
                written = self._write(self._generation)
                if written is None:
                    # A renewal whose answer was lost is our own.
                    seen, holder = self._read()
                    written = seen if holder is not None and holder.get("id") == self._own["id"] else None
            except StoreError as error:
                logger.warning("%s: its lock could not be renewed (%s)", self._folder, error)
                continue
            if written is None:
                lost(f"another process has taken over {self._folder}, as this one did not renew its lock; it ends here")
                return
            self._generation = written

    def _release(self) -> None:
        try:
            with self._errors():
                self._store.write(NAME, None, if_equal=self._generation).result(timeout=_ANSWER_SECONDS)
        except StoreError as error:
            logger.warning("%s: its lock stays and runs out in %g s (%s)", self._folder, self._lease, error)

    def _read(self) -> tuple[bytes, JsonObject | None]:
        """The generation of the lock (also of one that is not there), and what its holder wrote; None: nobody."""
        with self._errors():
            found = self._store.read(NAME).result(timeout=_ANSWER_SECONDS)
        if found.state == "missing":
            return found.stamp.generation, None
        try:
            holder = json.loads(found.value)
        except ValueError:
            holder = {}
        return found.stamp.generation, holder if isinstance(holder, dict) else {}

    def _write(self, generation: bytes) -> bytes | None:
        """Write the lock if it is still of ``generation``; its new generation, None: it is of another."""
        content = json.dumps({**self._own, "time": time.time(), "lease_seconds": self._lease})
        with self._errors():
            stamp = self._store.write(NAME, content, if_equal=generation).result(timeout=_ANSWER_SECONDS)
        return stamp.generation or None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, RuntimeError, TimeoutError) as error:  # as tensorstore and its stores raise
            raise store_error(self._folder, error) from error

    def _taken(self, holder: JsonObject | None) -> Taken:
        who = f" ({_shown(holder)})" if holder else ""
        return Taken(
            f"another process{who} is working in {self._folder}; wait until it ends, or set run_dir to another folder"
        )


def lease_of(folder: Path) -> Lease:
    """The lease of a remote folder; raises ``StoreError`` if its store has no conditional writes."""
    spec = kvstore_spec(folder)
    try:
        return Lease(ts.KvStore.open(spec).result(timeout=_ANSWER_SECONDS), folder)
    except (ValueError, OSError, RuntimeError, TimeoutError) as error:
        raise store_error(folder, error) from error


def _this_process() -> JsonObject:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}


def _machine() -> str:
    """What tells machines, and containers of one machine, apart: boot and process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # no other process is known to be on this machine


def _began(pid: int) -> float | None:
    """When a process began; None if there is none of this number."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _is_alive(holder: JsonObject) -> bool | None:
    """Whether a holder on this machine still runs; None: it is on another one."""
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int):
        return None
    began = _began(holder["pid"])
    return began is not None and abs(began - float(holder.get("began") or 0.0)) < 1.0


def _shown(holder: JsonObject) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _end(message: str) -> None:
    """End this process at once: what it wrote from now on would damage the run of another."""
    logger.error("%s", message)
    sys.stderr.flush()
    os._exit(_LOST)

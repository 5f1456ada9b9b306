"""Preemption: signals, the end of a cluster job's time, a cloud's maintenance notice.

A request is noted here and acted on by the loop after the step in progress, on all processes at the same step.
"""

import logging
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax

from lclm_jax.config.train import StopConfig
from lclm_jax.errors import LclmError

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 10.0


class StopRequest:
    """A reason to stop, once there is one; may be set from any thread."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def make(self, reason: str) -> None:
        """Ask the loop to save and stop; the first reason stays."""
        if self.reason is None:
            self.reason = reason
            logger.warning("%s: saving after this step, then stopping", reason)


@contextmanager
def stop_requests(settings: StopConfig) -> Iterator[StopRequest]:
    """Listen for reasons to stop; yields the request that they set.

    The first SIGTERM, SIGUSR1 or Ctrl-C asks; a second of any of them ends the process at once. With several processes
    SIGTERM is left to JAX's preemption service, which agrees on one step for all, and the other reasons raise SIGTERM.
    """
    request, over = StopRequest(), threading.Event()
    alone = jax.process_count() == 1
    previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        request.make(signal.Signals(number).name)

    def pass_on(reason: str) -> None:
        request.make(reason)
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        if alone:
            previous |= {number: signal.signal(number, note) for number in _SIGNALS}
        else:
            handler = signal.signal(signal.SIGUSR1, lambda number, frame: pass_on("SIGUSR1"))
            previous[signal.SIGUSR1] = handler
    thread = threading.Thread(target=_watch, args=(settings, pass_on, over), name="stop requests", daemon=True)
    thread.start()
    try:
        yield request
    finally:
        over.set()
        restore()


def job_deadline() -> float | None:
    """When the cluster job ends, in seconds since the epoch; None: it does not say.

    Reads ``LCLM_DEADLINE`` and ``SLURM_JOB_END_TIME`` (epochs), or asks ``flux job timeleft``.
    """
    for name in ("LCLM_DEADLINE", "SLURM_JOB_END_TIME"):
        if text := os.environ.get(name):
            if not text.isdigit():
                raise LclmError(f"{name}={text!r} is not a time; set it to seconds since the epoch")
            return float(text)
    if os.environ.get("FLUX_JOB_ID"):
        command = ["flux", "job", "timeleft"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip().isdigit():
            return time.time() + float(done.stdout)
        logger.warning("flux job timeleft gave no time (%s): the end of the job is unknown", done.stderr.strip())
    return None


def maintenance_notice(host: str) -> str | None:
    """What Google Compute Engine's metadata server announces for this machine: maintenance or preemption."""
    quiet = {"maintenance-event": "NONE", "preempted": "FALSE"}
    for name, nothing in quiet.items():
        request = urllib.request.Request(
            f"http://{host}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                said = answer.read().decode("utf-8", "replace").strip()
        except (urllib.error.URLError, TimeoutError) as error:
            logger.debug("metadata server %s: %s", host, error)
            return None
        if said != nothing:
            return f"{name}: {said}"
    return None


def _watch(settings: StopConfig, pass_on: Callable[[str], None], over: threading.Event) -> None:
    deadline = job_deadline()
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    while not over.is_set():
        reason = None
        if deadline is not None and deadline - time.time() < settings.before_end_seconds:
            reason = f"the job ends in {max(0.0, deadline - time.time()):.0f} s"
        elif settings.cloud_notice == "gce":
            reason = maintenance_notice(host)
        if reason:
            pass_on(reason)
            return
        over.wait(_POLL_SECONDS)

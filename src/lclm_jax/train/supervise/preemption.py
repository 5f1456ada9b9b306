"""Preemption: signals, the end of a cluster job's time, a cloud's maintenance notice.

A request is noted here and acted on by the loop after the step in progress, on all processes at the same step.
"""

import http.client
import logging
import math
import os
import signal
import subprocess
import threading
import time
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
_ANSWER_SECONDS = 30


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

    Raises:
        LclmError: ``LCLM_DEADLINE`` is not a time.
    """
    deadline = job_deadline()
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
    thread = threading.Thread(
        target=_watch, args=(settings, deadline, pass_on, over), name="stop requests", daemon=True
    )
    thread.start()
    try:
        yield request
    finally:
        over.set()
        restore()


def job_deadline() -> float | None:
    """When the cluster job ends, in seconds since the epoch; None: it is not known.

    Reads ``LCLM_DEADLINE``, which a person sets, and ``SLURM_JOB_END_TIME``, or asks ``flux job timeleft``.

    Raises:
        LclmError: ``LCLM_DEADLINE`` is not a time. What a scheduler says beside the mark is only warned of.
    """
    if (own := own_deadline()) is not None:
        return own
    if text := os.environ.get("SLURM_JOB_END_TIME", "").strip():
        end = _number(text)
        if end is not None and end > time.time():
            return end
        logger.warning(
            "SLURM_JOB_END_TIME=%r is not a time to come: the end of the job is not known; LCLM_DEADLINE can say it",
            text,
        )
    return _flux_deadline() if os.environ.get("FLUX_JOB_ID") else None


def own_deadline() -> float | None:
    """``LCLM_DEADLINE`` in seconds since the epoch; None: it is not set. Raises ``LclmError`` if it is not a time."""
    text = os.environ.get("LCLM_DEADLINE", "").strip()
    value = _number(text)
    if text and (value is None or value < 0):
        raise LclmError(
            f"LCLM_DEADLINE={text!r} is not a time; set it to seconds since the epoch, as `date +%s` prints them"
        )
    return value


def _number(text: str) -> float | None:
    """``text`` as a number; None if it is none, or infinite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _flux_deadline() -> float | None:
    command = ["flux", "job", "timeleft"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
        left, said = _number(done.stdout.strip()), done.stderr.strip() or done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        left, said = None, str(error)
    if left is None:
        logger.warning("flux job timeleft gave no time (%s): the end of the job is not known", said)
        return None
    return time.time() + left


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
        except (OSError, ValueError, http.client.HTTPException) as error:
            logger.debug("metadata server %s: %s", host, error)
            return None
        if said != nothing:
            return f"{name}: {said}"
    return None


def _watch(settings: StopConfig, deadline: float | None, pass_on: Callable[[str], None], over: threading.Event) -> None:
    """Look for a reason to stop now and then, until there is one; an error of a look does not end the watch."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    told = ""
    while not over.is_set():
        try:
            reason = _reason(settings, deadline, host)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job's end must still be noticed
            reason = None
            if str(error) != told:
                told = str(error)
                logger.warning("watching for the end of the job: %s: %s; watching on", type(error).__name__, error)
        if reason:
            pass_on(reason)
            return
        over.wait(_POLL_SECONDS)


def _reason(settings: StopConfig, deadline: float | None, host: str) -> str | None:
    """Why to stop now; None: there is no reason."""
    if deadline is not None and deadline - time.time() < settings.before_end_seconds:
        return f"the job ends in {max(0.0, deadline - time.time()):.0f} s"
    return maintenance_notice(host) if settings.cloud_notice == "gce" else None

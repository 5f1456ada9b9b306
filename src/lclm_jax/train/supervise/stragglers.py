"""Stragglers: a step is as fast as the slowest process, and no process sees that by itself."""

import logging
import socket
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from lclm_jax.train.logging.events import Events

logger = logging.getLogger(__name__)

_SHARE = 0.2
"""Fraction of a step that a process must lose beyond the others before it is named."""
_NAME_BYTES = 64


class StragglerMonitor:
    """Compares the time that each process spends outside of its device; does nothing in a run of one process.

    A process that keeps up spends nearly all of a step waiting for its device. A straggler (slow storage, a busy
    or throttled processor) finds the device done, and the others wait for it inside of their collectives.
    """

    def __init__(self, stage: str, events: Events):
        self._stage, self._events = stage, events
        self._steps, self._wall, self._host, self._data = 0, 0.0, 0.0, 0.0
        self._told: int | None = None

    def add(self, wall: float, device_wait: float, data_wait: float) -> None:
        """Seconds of a step less compilation, saves and probes; of them, waiting for the device, and for a batch."""
        self._steps += 1
        self._wall += wall
        self._host += wall - device_wait
        self._data += data_wait

    def compare(self) -> dict[str, float]:
        """Name a straggler; all processes call this after the same step, and start counting again.

        Returns:
            ``host_max_seconds`` and ``host_median_seconds``: seconds of a step outside of the device, over processes.
        """
        if jax.process_count() == 1:
            return {}
        mine = np.array([self._wall, self._host, self._data], np.float32) / max(self._steps, 1)
        self._steps, self._wall, self._host, self._data = 0, 0.0, 0.0, 0.0
        with jax.transfer_guard("allow"):
            wall, host, data = np.asarray(multihost_utils.process_allgather(mine)).T
            slow = slow_process(host.tolist(), float(wall.mean()))
            if slow is not None and slow != self._told:
                self._tell(slow, _hostnames()[slow], float(host[slow]), float(data[slow]), float(wall.mean()))
        self._told = slow
        return {"host_max_seconds": float(host.max()), "host_median_seconds": float(np.median(host))}

    def _tell(self, rank: int, name: str, host: float, data: float, wall: float) -> None:
        self._events.write("slow_process", process=rank, host=name, seconds=host, data_wait_seconds=data)
        if jax.process_index() == 0:
            logger.warning(
                "%s: process %d of %d (%s) is a straggler: %.3f s of a step of %.3f s pass outside of its"
                " device, %.3f s of them waiting for data",
                self._stage, rank, jax.process_count(), name, host, wall, data,
            )  # fmt: skip


def slow_process(host_seconds: Sequence[float], step_seconds: float) -> int | None:
    """The process that spends over a fifth of a step more outside of its device than the median of the others."""
    rank = int(np.argmax(host_seconds))
    others = [seconds for at, seconds in enumerate(host_seconds) if at != rank]
    return rank if host_seconds[rank] - float(np.median(others)) > _SHARE * step_seconds else None


def _hostnames() -> list[str]:
    """Of all processes; all of them must ask."""
    mine = np.zeros(_NAME_BYTES, np.uint8)
    name = np.frombuffer(socket.gethostname().encode()[:_NAME_BYTES], np.uint8)
    mine[: len(name)] = name
    names = np.asarray(multihost_utils.process_allgather(mine))
    return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in names]

"""One line of JSON per optimizer step, and what is computed from a step's metrics and its batch."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lclm_jax.data.loading.position import BatchStats
from lclm_jax.errors import LclmError
from lclm_jax.machine import remedy
from lclm_jax.train.logging.line_files import LineFile, open_lines
from lclm_jax.train.logging.records import Record, read_metrics, working_seconds

logger = logging.getLogger(__name__)


def make_record(
    step: int, metrics: Mapping[str, np.ndarray], stats: BatchStats, hosts: int, seconds: dict[str, float]
) -> Record:
    """The line of one step.

    Args:
        step: index of the update, from 0.
        metrics: what the train step returned, on the host.
        stats: contents of this host's rows, a ``hosts``-th of the batch's: counts and rates are scaled.
        hosts: batch over host, in rows.
        seconds: ``wall`` (since the step before), ``data_wait`` and what else the wall time was spent on: ``compile``,
            ``checkpoint``, ``evaluation``, ``logging``.

    Returns:
        ``step``, the metrics, tokens and fill of the batch, ``unix_seconds`` (now), ``wall_seconds``,
        ``data_wait_seconds``, the other seconds that are not zero, and the rates ``raw_tokens_per_s``,
        ``decoder_tokens_per_s``, ``encoder_tokens_per_s``, from ``working_seconds``. Not finite values become null.
    """
    record: Record = {"step": step}
    for name in sorted(metrics):
        value = float(metrics[name])
        record[name] = value if math.isfinite(value) else None
    record |= {"raw_tokens": stats.raw_tokens * hosts, "decoder_fill": stats.decoder_fill}
    record |= {"encoder_fill": stats.encoder_fill, "unix_seconds": time.time()}
    record |= {f"{name}_seconds": spent for name, spent in seconds.items() if spent or name in ("wall", "data_wait")}
    working = working_seconds(record)
    for kind in ("raw", "decoder", "encoder"):
        record[f"{kind}_tokens_per_s"] = getattr(stats, f"{kind}_tokens") * hosts / working
    return record


class MetricsLog:
    """``metrics.jsonl`` of a stage, appended to; written by the first process only.

    A restarted stage cuts off what came after its checkpoint, so the file reads like that of one uninterrupted run.
    Lines that a full disk refuses are kept in memory and written when there is room again.
    """

    def __init__(self, path: Path, first_step: int, writes: bool = True):
        self._path = path
        self._file: LineFile | None = None
        self._waiting: list[bytes] = []
        if writes:
            kept = [record for record in read_metrics(path) if record["step"] < first_step]
            self._file = open_lines(path, [json.dumps(record) + "\n" for record in kept])

    def write(self, record: Record) -> None:
        """Append one line and hand it on, so that it survives the death of this process (in a bucket: soon)."""
        if self._file is None:
            return
        self._waiting.append(json.dumps(record).encode() + b"\n")
        error = self._file.append(self._waiting)
        if error is not None and len(self._waiting) == 1:
            logger.warning("cannot write %s (%s); its lines wait for room", self._path, error.strerror)

    def flush(self) -> None:
        """Write what waits in memory, before a checkpoint is written that takes it for granted."""
        if self._file is not None and (error := self._file.flush()) is not None:
            logger.warning("cannot write %s (%s); its lines wait", self._path, error)

    def close(self) -> None:
        """Close the file.

        Raises:
            LclmError: lines are left that could not be written.
        """
        if self._file is None:
            return
        error = self._file.append(self._waiting)
        error = self._file.close() or error
        if error is not None:
            raise LclmError(
                f"cannot write {self._path} ({error.strerror or error}), {len(self._waiting) or 'some'} lines are lost;"
                f" checkpoints are intact: {remedy(error.errno)}; then rerun the same command to resume"
            ) from error

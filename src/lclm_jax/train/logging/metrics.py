"""One line of JSON per optimizer step, and what is computed from a step's metrics and its batch."""

import errno
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lclm_jax.data.loading.position import BatchStats
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.machine import remedy
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
        self._path, self._file = path, None
        self._waiting: list[bytes] = []
        if not writes:
            return
        kept = [record for record in read_metrics(path) if record["step"] < first_step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append one line and hand it to the operating system, so that it survives the death of this process."""
        if self._file is None:
            return
        self._waiting.append(json.dumps(record).encode() + b"\n")
        error = self._flush()
        if error is not None and len(self._waiting) == 1:
            logger.warning("cannot write %s (%s); its lines wait for room", self._path, error.strerror)

    def close(self) -> None:
        """Close the file.

        Raises:
            LclmError: lines are left that could not be written.
        """
        if self._file is None:
            return
        error = self._flush()
        self._file.close()
        if error is not None:
            raise LclmError(
                f"cannot write {self._path} ({error.strerror}), {len(self._waiting)} lines are lost; checkpoints are"
                f" intact: {remedy(error.errno)}; then rerun the same command to resume"
            ) from error

    def _flush(self) -> OSError | None:
        """Write what waits, line by line; a line is written whole or cut off again."""
        assert self._file is not None
        while self._waiting:
            end = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(self._waiting[0]) != len(self._waiting[0]):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file.fileno(), end)
                return error
            self._waiting.pop(0)
        return None

"""Worker processes of the loader that leave nothing behind: they end with the trainer, and so does their memory."""

import logging
import multiprocessing
import os
import signal
import threading
from types import FrameType

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.errors import LclmError
from lclm_jax.machine import SHARED_MEMORY, shared_memory_free

logger = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
"""How long a worker keeps serving its trainer after SIGTERM, which the trainer may have received as well."""


def check_shared_memory(workers: int, buffered: int, batch_bytes: int) -> None:
    """Warn if shared memory may not hold the batches under way, refuse if it cannot hold one of each worker.

    A worker that finds it full is killed by the system, without a word.

    Args:
        workers: worker processes.
        buffered: batches that each makes ahead.
        batch_bytes: bytes of a batch that go through shared memory.

    Raises:
        LclmError: there is too little.
    """
    free = shared_memory_free()
    if free is None or free >= workers * (buffered + 2) * batch_bytes:
        return
    room = (
        f"{workers} data workers hand on batches of {batch_bytes / 1e6:.1f} MB through {SHARED_MEMORY}, which has"
        f" {free / 1e6:.1f} MB free; give the job more (docker run --shm-size=16g, in Kubernetes an emptyDir of medium"
        " Memory there), or lower data.workers (0: no shared memory)"
    )
    if free < workers * batch_bytes:
        raise LclmError(room)
    logger.warning("%s: a worker that finds it full is killed", room)


def end_with_parent(number: int, count: int) -> None:
    """Called in worker ``number`` of ``count``: end it as soon as its parent is gone, even by SIGKILL.

    Without it, the worker would wait forever for space in a queue that nobody reads. Linux's PR_SET_PDEATHSIG would
    not do: it acts when the thread that started the worker ends, which lives shorter than the process. Once the workers
    are gone, Python's resource tracker frees the shared memory that they made.

    Schedulers and terminals send their signals to all processes of a run. A trainer that is to save and stop still
    wants batches, so its workers leave the answer to it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name=f"parent of worker {number} of {count}", daemon=True).start()


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def owned(batch: Batch) -> Batch:
    """``batch`` with arrays of its own, so that the shared memory it came in is freed now.

    It would be freed with the last view of it, which at the end of a process is never.
    """
    return Batch(*(None if array is None else np.array(array) for array in batch))

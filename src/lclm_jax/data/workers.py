"""Worker processes of the loader that leave nothing behind: they end with the trainer, and so does their memory."""

import multiprocessing
import os
import threading

import numpy as np

from lclm_jax.batch import Batch


def end_with_parent(number: int, count: int) -> None:
    """Called in worker ``number`` of ``count``: end it as soon as its parent is gone, even by SIGKILL.

    Without it, the worker would wait for ever for room in a queue that nobody reads. Linux's PR_SET_PDEATHSIG would
    not do: it acts when the thread that started the worker ends, which lives shorter than the process. Once the workers
    are gone, Python's resource tracker frees the shared memory that they made.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name=f"parent of worker {number} of {count}", daemon=True).start()


def owned(batch: Batch) -> Batch:
    """``batch`` with arrays of its own, so that the shared memory it came in is freed now.

    It would be freed with the last view of it, which at the end of a process is never.
    """
    return Batch(*(None if array is None else np.array(array) for array in batch))

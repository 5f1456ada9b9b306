import errno
import threading
from typing import ClassVar

import pytest

from lclm_jax.data.loading.position import Position
from lclm_jax.errors import LclmError
from lclm_jax.train.supervise.resilient_loader import DataStalled, ResilientLoader


class Rows:
    """Batches are their first row; ``fail(row)`` may raise or wait."""

    opened: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, start, fail):
        self.row, self.fail, self.closed = start.rows, fail, False
        Rows.opened.append((start.rows, start.step))

    def __next__(self):
        self.fail(self.row)
        self.row += 4
        return self.row - 4, "stats"

    def close(self):
        self.closed = True


def feeder(fail, timeout=5.0, first=0):
    Rows.opened = []
    return ResilientLoader(lambda start: Rows(start, fail), Position(first, step=10), 4, timeout)


def test_a_dead_loader_is_opened_where_it_stood(caplog):
    bad = [8]

    def fail(row):
        if row in bad:
            bad.remove(row)
            raise RuntimeError("worker died\ntraceback")

    with feeder(fail) as batches:
        assert [next(batches)[0] for _ in range(5)] == [0, 4, 8, 12, 16]
    assert Rows.opened == [(0, 10), (8, 12)]
    assert "process 0 at row 8 (step 2): the loader died (RuntimeError: worker died); reopening" in caplog.text


def test_a_stalled_loader_is_opened_again_and_given_up_after_three_times():
    stall = threading.Event()
    with feeder(lambda row: stall.wait() if row == 4 else None, timeout=0.1) as batches:
        assert next(batches)[0] == 0
        with pytest.raises(DataStalled, match=r"row 4 \(step 1\): no batch for 0.1 s .* 3 times in a row"):
            next(batches)
    assert Rows.opened == [(0, 10), (4, 11), (4, 11)]
    stall.set()


def test_damaged_data_are_not_tried_again():
    def fail(row):
        raise LclmError("shard 3 is damaged")

    with feeder(fail, first=12) as batches, pytest.raises(LclmError, match="shard 3 is damaged"):
        next(batches)
    assert Rows.opened == [(12, 10)]


def test_a_killed_worker_is_explained(caplog):
    bad = ["Worker process was terminated unexpectedly with exit code -9. Search the logs above"]

    def fail(row):
        if row == 4 and bad:
            raise RuntimeError(bad.pop())

    with feeder(fail) as batches:
        assert [next(batches)[0] for _ in range(2)] == [0, 4]
    assert "the loader died (a data worker was killed by SIGKILL, most likely because memory ran out (" in caplog.text


def test_what_the_operating_system_refuses_has_its_own_advice():
    def fail(row):
        raise OSError(errno.EMFILE, "Too many open files", "shard")

    with feeder(fail) as batches, pytest.raises(DataStalled, match=r"Too many open files.*ulimit -n"):
        next(batches)

"""Shards of stores that ArrayRecord cannot read, through ranged requests of fsspec that fail at times."""

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.implementations.memory import MemoryFileSystem

from lclm_jax.data.store import remote_shard
from lclm_jax.data.store.array_record_index import BLOCK, index_start, record_offsets
from lclm_jax.data.store.remote_shard import RangedShard
from lclm_jax.data.store.storage import PreparedError, Storage

NAME = "docs/train-00000-of-00001.array_record"


class Flaky(MemoryFileSystem):
    """A store whose next answers fail as ``faults`` say, and that tells what it was asked for."""

    protocol = "flaky"
    cachable = False

    def __init__(self):
        super().__init__()
        self.faults, self.asked = [], []

    def cat_ranges(self, paths, starts, ends, **options):
        self.asked.append(list(zip(starts, ends, strict=True)))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        found = super().cat_ranges(paths, starts, ends, **options)
        return [one[: len(one) // 2] if fault == "truncated" else _damaged(one) if fault else one for one in found]


def _damaged(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote_shard, "_FIRST_PAUSE", 0.001)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """``write(records)``: (a shard of them in the store, the store)."""

    def make(records, options="group_size:1,zstd:3"):
        path = tmp_path / "shard"
        writer = ArrayRecordWriter(str(path), options)
        for record in records:
            writer.write(record)
        writer.close()
        system = Flaky()
        system.pipe_file(f"/prepared/{NAME}", path.read_bytes())
        monkeypatch.setattr("lclm_jax.data.store.storage.file_system", lambda url: (system, "/prepared"))
        return RangedShard(Storage("flaky://prepared"), NAME, len(records), path.stat().st_size), system

    return make


def records_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [bytes(rng.integers(0, 90, int(size), np.uint8)) for size in sizes]


def test_a_record_is_a_range_and_nothing_else_is_read(write):
    records = records_of([5, 70_000, 1, 3000, 200_000, 12])  # some of them lie in several blocks
    shard, system = write(records)
    assert shard.read([4, 0, 4, 2]) == [records[4], records[0], records[4], records[2]]
    opened, asked = system.asked
    assert len(opened) == 1 and len(asked) == 3
    assert sum(stop - start for start, stop in asked) < 200_000
    assert shard.read(range(6)) == records
    assert len(system.asked) == 3, "it is opened once"


@pytest.mark.parametrize("options", ["group_size:1,zstd:3", "group_size:1,uncompressed", "group_size:1,brotli:1"])
def test_an_index_longer_than_the_tail_is_read_whole(write, options, monkeypatch):
    monkeypatch.setattr(remote_shard, "_TAIL", BLOCK)
    records = records_of(np.random.default_rng(1).integers(0, 9, 12_000))
    shard, system = write(records, options)
    assert shard.read([11_999, 0, 6_000]) == [records[11_999], records[0], records[6_000]]
    assert len(system.asked) == 3


@pytest.mark.parametrize("fault", [OSError("503 slow down"), TimeoutError("too late"), "truncated", "damaged"])
def test_faults_lose_nothing(write, fault):
    records = records_of([400] * 30)
    shard, system = write(records)
    for rows in ([3, 9], [8]):  # while it is opened, and while records are read
        system.faults = [fault]
        if fault == "damaged" and rows == [3, 9]:
            system.faults = [None, fault]  # the end of the file holds no checked byte
        assert shard.read(rows) == [records[row] for row in rows]
        assert not system.faults


def test_what_is_not_there_or_no_shard_is_named(write):
    shard, system = write(records_of([400] * 3))
    with pytest.raises(PreparedError, match=r"flaky://prepared/docs/none is missing"):
        RangedShard(shard._storage, "docs/none", 3, 70_000).read([0])
    with pytest.raises(PreparedError, match=r"has 3 records, its manifest says 4"):
        RangedShard(shard._storage, NAME, 4, shard._size).read([0])
    system.pipe_file(f"/prepared/{NAME}", b"no shard" * 20_000)
    with pytest.raises(PreparedError, match=r"this is no shard, or a damaged one"):
        RangedShard(shard._storage, NAME, 3, 160_000).read([0])
    system.faults = [OSError("refused")] * 6
    with pytest.raises(PreparedError, match=r"after 6 tries: refused.*data\.copy_shards"):
        shard.read([0])


def test_groups_of_records_are_refused(write):
    shard, _ = write(records_of([9] * 8), "group_size:4,zstd:3")
    with pytest.raises(PreparedError, match="its records are in groups"):
        shard.read([0])


def test_the_index_tells_where_records_lie(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "a"), "group_size:1,zstd:3")
    for record in records_of([100] * 40):
        writer.write(record)
    writer.close()
    content = (tmp_path / "a").read_bytes()
    start = index_start(content[-BLOCK:], len(content))
    assert start == index_start(content, len(content))
    offsets = record_offsets(content[start:], start)
    assert len(offsets) == 41 and offsets[-1] == start and (np.diff(offsets) > 0).all()
    with pytest.raises(PreparedError, match="it ends early"):
        record_offsets(content[start : start + 100], start)

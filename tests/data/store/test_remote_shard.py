"""Shards on an object store, read in place through a server that fails at times."""

import json
import logging
import socket

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.implementations.memory import MemoryFileSystem
from tests.data.store.bucket import NAME, a_bucket

from lclm_jax.data.store import remote_shard, storage
from lclm_jax.data.store.remote_shard import RemoteShard
from lclm_jax.data.store.shard_cache import ShardCache
from lclm_jax.data.store.shards import PreparedSplit, decode_record, encode_record
from lclm_jax.data.store.storage import PreparedError

RECORDS = 300
FILE = "prepared/docs/train-00000-of-00001.array_record"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def wanted():
    rng = np.random.default_rng(0)
    return [{"tokens": rng.integers(0, 2**32, 500, np.uint32)} for _ in range(RECORDS)]


@pytest.fixture(scope="module")
def bucket(wanted, tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "shard"
    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:3")
    for record in wanted:
        writer.write(encode_record(record))
    writer.close()
    with pytest.MonkeyPatch.context() as patch, a_bucket(free_port(), 0) as (bucket, address):
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        bucket.put(FILE, path.read_bytes())
        bucket.size = path.stat().st_size
        yield bucket


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote_shard, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def manifest(bucket, monkeypatch):
    """The small files of the prepared folder, which come by fsspec; in memory here, so that no driver is needed."""
    shard = {"file": FILE.removeprefix("prepared/"), "records": RECORDS, "bytes": bucket.size}
    shard |= {"sha256": "0" * 64, "lengths_sha256": "0" * 64}
    split = {"records": RECORDS, "decoder_tokens": 500 * RECORDS, "shards": [shard]}
    memory = MemoryFileSystem()
    memory.pipe_file(
        "/bucket/manifest.json", json.dumps({"format": 3, "collections": {"docs": {"train": split}}}).encode()
    )
    memory.pipe_file("/bucket/" + shard["file"], b"another content")
    monkeypatch.setattr(storage, "file_system", lambda url: (memory, "/bucket"))


def test_records_are_read_by_range_and_nothing_is_copied(bucket, manifest, wanted, tmp_path):
    split = PreparedSplit(f"gs://{NAME}/prepared", "docs", "train", ShardCache(tmp_path, always=False))
    bucket.downloads.clear()
    rows = [7, 299, 0, 123]
    for row, found in zip(rows, split.read_many(rows), strict=True):
        np.testing.assert_array_equal(found["tokens"], wanted[row]["tokens"])
    assert list(tmp_path.iterdir()) == []
    of_shard = [one for one in bucket.downloads if "array_record" in one]
    assert len(of_shard) <= len(rows) + 3, "one request a record, and a few to open the shard"


@pytest.mark.parametrize("fault", [503, "reset", "truncated", 0.3])
def test_faults_of_the_store_lose_nothing(bucket, wanted, fault):
    shard = RemoteShard(f"gs://{NAME}/{FILE}", RECORDS)
    for when in range(2):  # while the shard is opened, and while records are read
        bucket.faults[:] = [fault]
        rows = [when, 50 + when, 200 + when]
        for row, data in zip(rows, shard.read(rows), strict=True):
            np.testing.assert_array_equal(decode_record(data)["tokens"], wanted[row]["tokens"])
    assert bucket.faults == []


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(PreparedError, match=r"gs://corpus/none is missing"):
        RemoteShard(f"gs://{NAME}/none", 3).read([0])
    with pytest.raises(PreparedError, match=r"has 300 records, its manifest says 3"):
        RemoteShard(f"gs://{NAME}/{FILE}", 3).read([0])


def test_a_store_that_gives_no_answer_is_named_with_the_way_out(bucket, monkeypatch, caplog):
    class Broken:
        def __init__(self, *_):
            pass

        def num_records(self):
            return RECORDS

        def ok(self):
            return True

        def read(self, rows):
            raise RuntimeError("connection refused")

    monkeypatch.setattr(remote_shard, "ArrayRecordReader", Broken)
    with caplog.at_level(logging.WARNING), pytest.raises(PreparedError, match=r"after 6 tries: .*data\.copy_shards"):
        RemoteShard("gs://corpus/x", RECORDS).read([0])
    assert len([one for one in caplog.records if "asking again" in one.message]) == 5


def test_copies_are_an_option(bucket, manifest, tmp_path):
    split = PreparedSplit(f"gs://{NAME}/prepared", "docs", "train", ShardCache(tmp_path))
    with pytest.raises(PreparedError, match="is damaged: sha256"):
        split.read(0)  # a copy is compared with the manifest's checksum

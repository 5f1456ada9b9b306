"""Files and models in S3: moto, a server that knows its protocol, on this machine."""

import json
import time

import boto3
import numpy as np
import pytest
import tensorstore as ts
from array_record.python.array_record_module import ArrayRecordWriter
from moto.server import ThreadedMotoServer

from lclm_jax.data.store.shard_cache import ShardCache
from lclm_jax.data.store.shards import PreparedSplit, encode_record
from lclm_jax.files import replacing_folder, write_json
from lclm_jax.ops.lease import Lease, lease_of
from lclm_jax.paths import StoreError, kvstore_spec, local_copy, names_below, to_path


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """URL of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="models")
        yield "s3://models"
    server.stop()


def test_files_and_folders(bucket):
    folder = to_path(f"{bucket}/files")
    write_json(folder / "a.json", {"x": 1})
    assert names_below(folder) == {"a.json": 13} and (folder / "a.json").is_file()
    for content in ("old", "new"):
        with replacing_folder(folder / "model", last="model_config.json") as made:
            (made / content).write_text(content)
            (made / "model_config.json").write_text("{}")
    assert sorted(names_below(folder / "model")) == ["model_config.json", "new"]
    copy = local_copy(folder / "model")
    assert (copy / "new").read_text() == "new" and local_copy(folder / "model") == copy
    (folder / "model" / "new").write_text("newer")
    assert (local_copy(folder / "model") / "new").read_text() == "newer"


def test_what_is_missing_is_named(bucket):
    with pytest.raises(StoreError, match="s3://none does not exist"):
        write_json(to_path("s3://none/a.json"), {})
    with pytest.raises(FileNotFoundError):
        local_copy(to_path(f"{bucket}/nothing"))


def test_of_two_conditional_writes_one_succeeds(bucket):
    first, second = lease_of(to_path(f"{bucket}/lock")), lease_of(to_path(f"{bucket}/lock"))
    generation, holder = first._read()
    assert holder is None
    written = [lease._write(generation) for lease in (first, second)]
    assert written[0] is not None and written[1] is None
    first._generation = written[0]
    first._release()
    assert second._read()[1] is None


def test_a_lock_is_renewed_and_given_back(bucket):
    folder = to_path(f"{bucket}/renewed")
    store = ts.KvStore.open(kvstore_spec(folder)).result()
    with Lease(store, folder, 5.0, 0.2).hold():
        first = store.read(".lock").result().stamp.generation
        for _ in range(50):
            if store.read(".lock").result().stamp.generation != first:
                break
            time.sleep(0.1)
        assert store.read(".lock").result().stamp.generation != first
    assert store.read(".lock").result().state == "missing"


def test_prepared_records_are_read_in_place(bucket, tmp_path):
    wanted = [{"tokens": np.arange(number, number + 500, dtype=np.uint32)} for number in range(300)]
    path = tmp_path / "shard"
    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:3")
    for record in wanted:
        writer.write(encode_record(record))
    writer.close()
    file = "docs/train-00000-of-00001.array_record"
    shard = {"file": file, "records": len(wanted), "bytes": path.stat().st_size}
    shard |= {"sha256": "0" * 64, "lengths_sha256": "0" * 64}
    split = {"records": len(wanted), "decoder_tokens": 500 * len(wanted), "shards": [shard]}
    (to_path(f"{bucket}/prepared") / file).write_bytes(path.read_bytes())
    manifest = {"format": 3, "collections": {"docs": {"train": split}}}
    (to_path(f"{bucket}/prepared") / "manifest.json").write_text(json.dumps(manifest))
    found = PreparedSplit(f"{bucket}/prepared", "docs", "train", ShardCache(tmp_path / "cache", always=False))
    for number in (0, 7, 299):
        np.testing.assert_array_equal(found.read(number)["tokens"], wanted[number]["tokens"])
    assert not list((tmp_path / "cache").rglob("*.array_record")), "nothing is copied"

import errno
import sys

import pytest
from click.testing import CliRunner

from lclm_jax.cli.main import cli
from lclm_jax.files import replacing, replacing_folder, write_json
from lclm_jax.paths import (
    StoreError,
    fetch_folder,
    kvstore_spec,
    local_copy,
    local_side,
    names_below,
    store_error,
    store_errors,
    to_path,
)


@pytest.fixture
def bucket(request):
    """An empty folder of fsspec's store in memory."""
    return to_path(f"memory://{request.node.name}")


def test_local_paths_stay_those_of_pathlib(tmp_path):
    assert type(to_path(str(tmp_path))) is type(tmp_path) and local_side(tmp_path) == tmp_path
    assert local_copy(tmp_path) == tmp_path


def test_a_store_whose_package_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"gs://b/x needs a package .*pip install 'lclm-jax\[gcs\]'"):
        to_path("gs://b/x")
    with pytest.raises(StoreError, match="names no bucket; write gs://BUCKET/FOLDER"):
        to_path("gs://")
    with pytest.raises(StoreError, match="nowhere://x cannot be opened"):
        to_path("nowhere://x")


def test_files_and_folders_in_a_bucket(bucket, tmp_path):
    write_json(bucket / "a.json", {"x": 1})
    with replacing(bucket / "deep" / "b.bin") as partial:
        partial.write_bytes(b"12345")
    assert names_below(bucket) == {"a.json": 9 + 4, "deep/b.bin": 5}
    fetch_folder(bucket, tmp_path)
    assert (tmp_path / "deep" / "b.bin").read_bytes() == b"12345"


def test_a_folder_that_is_sent_holds_the_new_files_alone_and_its_mark_comes_last(bucket, monkeypatch):
    for content in ("old", "new"):
        with replacing_folder(bucket, last="model_config.json") as made:
            (made / content).write_text(content)
            (made / "model_config.json").write_text(content)
    assert sorted(names_below(bucket)) == ["model_config.json", "new"]
    sent = []
    system = type(bucket.fs)

    def put_file(self, local, name, **_):
        sent.append(name.rpartition("/")[2])
        assert not (bucket / "model_config.json").exists()
        self.pipe_file(name, b"")

    monkeypatch.setattr(system, "put_file", put_file)
    with replacing_folder(bucket, last="model_config.json") as made:
        for name in ("model_config.json", "z", "a"):
            (made / name).write_text(name)
    assert sent == ["a", "z", "model_config.json"]


def test_a_copy_on_this_machine_is_made_once_for_each_content(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        local_copy(bucket)
    (bucket / "a").write_text("1")
    first = local_copy(bucket)
    assert (first / "a").read_text() == "1" and local_copy(bucket) == first
    (bucket / "a").write_text("two")
    assert (local_copy(bucket) / "a").read_text() == "two" and (first / "a").read_text() == "1"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            PermissionError("Forbidden: x@y does not have storage.objects.create access"),
            "may not read and write gs://b",
        ),
        (OSError("UNAUTHENTICATED: 401"), "no valid credentials for it; gcloud auth application-default login"),
        (ValueError("NOT_FOUND: the specified bucket does not exist"), "gs://b does not exist"),
        (OSError("RESOURCE_EXHAUSTED: 429 quota"), "the quota or the rate of gs://b is used up"),
        (ConnectionError("refused"), "look at the network"),
    ],
)
def test_errors_of_a_store_say_what_to_do(raised, told):
    assert told in str(store_error("gs://b/run", raised))


def test_only_errors_of_remote_paths_are_translated(bucket, tmp_path):
    with pytest.raises(OSError, match="full") as local, store_errors(tmp_path):
        raise OSError(errno.ENOSPC, "full")
    assert not isinstance(local.value, StoreError)
    with pytest.raises(StoreError), store_errors(bucket):
        raise OSError("broken")
    with pytest.raises(FileNotFoundError), store_errors(bucket):
        raise FileNotFoundError("a")


def test_stores_of_checkpoints(tmp_path, monkeypatch):
    assert kvstore_spec(tmp_path) == {"driver": "file", "path": f"{tmp_path}/"}
    assert kvstore_spec("gs://b/run/x") == {"driver": "gcs", "bucket": "b", "path": "run/x/"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert kvstore_spec("s3://b")["endpoint"] == "http://localhost:1"
    with pytest.raises(StoreError, match=r"a run lies on a disk, or in gs:// or s3://"):
        kvstore_spec("az://b/x")


def test_a_command_takes_a_url(bucket):
    found = CliRunner().invoke(cli, ["status", f"{bucket}/run"])
    assert "cannot read the configuration memory://" in str(found.exception)

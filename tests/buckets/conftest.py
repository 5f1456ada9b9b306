"""Runs in a bucket: an emulator of Google Cloud Storage on this machine, which every driver is told to use."""

import socket

import pytest
from tests.data.store.bucket import NAME, a_bucket


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """(the bucket, its URL); this process and those that it starts find it."""
    with pytest.MonkeyPatch.context() as patch, a_bucket(_free_port(), 0) as (bucket, address):
        patch.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs, google-cloud-storage
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)  # ArrayRecord
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks by gRPC, which the emulator has not
        patch.setenv("FSSPEC_GCS_TOKEN", "anon")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield bucket, f"gs://{NAME}"

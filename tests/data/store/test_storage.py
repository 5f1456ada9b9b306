import sys
import types

import pytest

from lclm_jax.data.store.storage import PreparedError, Storage, driver_errors, file_system
from lclm_jax.errors import LclmError


@pytest.mark.parametrize("url", ["nowhere://x/y", "gs://bucket/x"])
def test_what_cannot_be_opened_says_what_is_missing(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(LclmError, match=f"{url} cannot be opened .*gs:// needs the package gcsfs"):
        file_system(url)


def test_a_url_and_a_path(tmp_path):
    assert file_system(tmp_path.as_uri())[1] == str(tmp_path)
    assert file_system("memory://a/b")[1] == "/a/b"


class NoCredentials(Exception):
    """As drivers raise it: not an OSError."""


@pytest.fixture
def botocore(monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore.exceptions", types.SimpleNamespace(BotoCoreError=NoCredentials))


def test_errors_of_drivers_say_where_to_look(botocore):
    with pytest.raises(OSError, match="unable to locate; look at the credentials"), driver_errors():
        raise NoCredentials("unable to locate")
    with pytest.raises(KeyError), driver_errors():
        raise KeyError("another")


def test_a_store_that_does_not_answer_is_no_missing_file(botocore, monkeypatch):
    storage = Storage("memory://store")
    storage.write("a", b"abc")
    assert (storage.size("a"), storage.size("b")) == (3, None)

    def refuse(path):
        raise NoCredentials("unable to locate")

    monkeypatch.setattr(storage._system()[0], "info", refuse)
    with pytest.raises(PreparedError, match=r"cannot read memory://store/a: unable to locate"):
        storage.size("a")

import pytest

from lclm_jax.data.urls import file_system


@pytest.mark.parametrize("url", ["nowhere://x/y", "gs://bucket/x"])
def test_what_cannot_be_opened_says_what_is_missing(url, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ValueError, match=f"{url} cannot be opened .*gs:// needs the package gcsfs"):
        file_system(url)


def test_a_url_and_a_path(tmp_path):
    assert file_system(tmp_path.as_uri())[1] == str(tmp_path)
    assert file_system("memory://a/b")[1] == "/a/b"

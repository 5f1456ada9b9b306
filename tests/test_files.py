"""Files are written whole or not at all, and what the operating system refuses says so in one line."""

import errno
import os

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.files import WriteError, replacing, replacing_folder, write_bytes, write_json, write_text


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_nothing_is_left_beside(tmp_path):
    write_text(tmp_path / "a/b/c.txt", "ü")
    write_bytes(tmp_path / "a/b/d.bin", b"\x00")
    write_json(tmp_path / "a/b/e.json", {"ü": [1]})
    assert left(tmp_path / "a/b") == ["c.txt", "d.bin", "e.json"]
    assert (tmp_path / "a/b/c.txt").read_bytes() == "ü".encode()
    assert (tmp_path / "a/b/e.json").read_text() == '{\n  "ü": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, shared):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path, shared=shared) as partial:
        partial.write_text("new")
        raise KeyError("x")
    assert path.read_text() == "old" and left(tmp_path) == ["file"]


def test_a_full_disk_is_an_error_of_both_families(tmp_path):
    full = pytest.raises(WriteError, match=r"cannot write .*file: No space left on device; free some space")
    with full as caught, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(caught.value, LclmError) and isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOSPC and left(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(WriteError, match=r"cannot write .*file.*choose another folder"):
        write_text(tmp_path / "file" / "below", "")
    with pytest.raises(WriteError, match=r"cannot write .*file"), replacing_folder(tmp_path / "file" / "below"):
        pass


def test_an_error_of_reading_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        (tmp_path / "absent").read_text()


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    folder = tmp_path / "out"
    for text in ("one", "two"):
        with replacing_folder(folder) as partial:
            write_text(partial / text, text)
    assert left(folder) == ["two"] and left(tmp_path) == ["out"]
    with pytest.raises(ValueError, match="x"), replacing_folder(folder) as partial:
        raise ValueError("x")
    assert left(folder) == ["two"] and left(tmp_path) == ["out"]

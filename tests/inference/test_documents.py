"""Folders of text into a store, by content and incrementally, through the commands."""

import json
import re

import pytest
from click.testing import CliRunner
from tests.tiny_exports import tiny_export

from lclm_jax.cli.main import cli
from lclm_jax.errors import LclmError
from lclm_jax.inference.documents import text_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_export("mean", tmp_path_factory.mktemp("documents") / "model")


def lclm(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_documents_are_added_once_and_found(folder, tmp_path):
    texts, store = tmp_path / "texts", tmp_path / "latents.db"
    (texts / "below").mkdir(parents=True)
    (texts / "code.py").write_text("def read(path):\n    return path\n" * 20)
    (texts / "below" / "copy.py").write_text("def read(path):\n    return path\n" * 20)
    (texts / "below" / "notes.txt").write_text("a mapping from keys to values, which may be anything; " * 8)
    (texts / "image.png").write_bytes(bytes(range(256)))
    (texts / ".hidden").write_text("not read")

    def add(*paths):
        lclm("store", "add", store, *paths, "--model", folder, "--batch-windows", 8, "--json", tmp_path / "found.json")
        return json.loads((tmp_path / "found.json").read_text())

    first = add(texts)
    assert (first["documents"], first["new"], first["skipped"]) == (3, 2, 1)
    assert 0 < first["encoded"] < first["windows"]  # the copy costs nothing
    again = add(texts, texts / "code.py")
    assert (again["documents"], again["new"], again["encoded"]) == (3, 0, 0)
    with (texts / "below" / "notes.txt").open("a") as file:
        file.write("and more")
    grown = add(texts)
    assert grown["new"] == 1 and 1 <= grown["encoded"] <= 2
    lines = lclm("store", "search", store, "def read(path):\n    return path\n", "--model", folder, "--limit", 2)
    assert re.match(r"[\d.]+  .*(code|copy)\.py  characters \d+ to \d+\n", lines)
    assert "3 documents" in lclm("store", "stat", store)  # the text before it grew is one, too
    assert "0 entries are damaged" in lclm("store", "verify", store)
    out = tmp_path / "all.safetensors"
    count = int(re.search(r": ([\d,]+) windows", lclm("store", "export", store, out)).group(1))
    assert f": {count} windows" in lclm("store", "import", tmp_path / "other.db", out)
    assert "windows removed" in lclm("store", "gc", store, "--max-gb", 1e-6, "--compact")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(LclmError, match="there is no"):
        text_files([tmp_path / "missing"])
    with pytest.raises(LclmError, match="lclm store add"):
        lclm("store", "stat", tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()

"""Raw files that change under a preparation, or after it."""

import io
import json
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Entry
from lclm_jax.data.prepare import file_versions
from lclm_jax.data.prepare.file_versions import changed_entries, shown_files, sources_of, write_sources
from lclm_jax.data.prepare.parts import Part
from lclm_jax.data.prepare.readers import list_entries
from lclm_jax.data.store.storage import Storage

ROWS = [{"text": f"row {i}", "other": f"other {i}"} for i in range(40)]


class Corpus:
    def __init__(self, root, form="jsonl", part_bytes=300):
        self.collection = CollectionConfig(format=form, paths=(str(root),))
        self.config = type("C", (), {"corpus": type("D", (), {"resolved": {"docs": self.collection}})})
        self.entries = list_entries(self.collection, part_bytes)

    def parts(self):
        return [Part("docs", f"docs/part-{i}", ("train",), (one,), i) for i, one in enumerate(self.entries)]

    def record(self, storage):
        for part in self.parts():
            write_sources(storage, part, "key", sources_of(part, self.collection))

    def changed(self, storage, key="key"):
        return [part.rank for part in changed_entries(storage, self.parts(), key, self.config)]


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows)


def touch(path):
    os.utime(path, ns=(1, 1))


def test_equal_size_and_other_content_is_a_change_of_the_parts_it_is_in(tmp_path):
    raw, storage = tmp_path / "a.jsonl", Storage(tmp_path / "out")
    raw.write_text(lines())
    corpus = Corpus(raw)
    assert len(corpus.entries) > 4
    corpus.record(storage)
    assert corpus.changed(storage) == []
    raw.write_text(lines().replace("row 39", "ROW 39"))
    touch(raw)  # even if the time of its content is set back
    assert corpus.changed(storage) == [len(corpus.entries) - 1]
    cut = next(one.start for one in corpus.entries[1:] if lines()[one.start - 1] != "\n")
    raw.write_text(lines()[:cut] + lines()[cut:].replace(lines()[cut], "?", 1))  # the end of a line of the part before
    rank = next(i for i, one in enumerate(corpus.entries) if one.start == cut)
    assert corpus.changed(storage) == [rank - 1, rank]
    assert corpus.changed(storage, "of other settings") == []


def test_a_touched_file_is_compared_once(tmp_path, monkeypatch):
    raw, storage = tmp_path / "a.jsonl", Storage(tmp_path / "out")
    raw.write_text(lines())
    corpus = Corpus(raw)
    corpus.record(storage)
    touch(raw)
    assert corpus.changed(storage) == []
    monkeypatch.setattr(file_versions, "_digest", None)
    assert corpus.changed(storage) == []


def test_a_folder_that_cannot_be_written_is_compared_all_the_same(tmp_path, monkeypatch):
    raw, storage = tmp_path / "a.txt", Storage(tmp_path / "out")
    raw.write_text("text")
    corpus = Corpus(raw, "text")
    corpus.record(storage)
    touch(raw)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(storage, "write", refuse)
    assert corpus.changed(storage) == []


def test_row_groups_of_a_table(tmp_path):
    raw, storage = tmp_path / "a.parquet", Storage(tmp_path / "out")

    def write(rows):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=10, compression=None, use_dictionary=False)
        raw.write_bytes(sink.getvalue())

    write(ROWS)
    corpus = Corpus(raw, "parquet", part_bytes=raw.stat().st_size // 4)
    assert [(one.start, one.stop) for one in corpus.entries] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    corpus.record(storage)
    write([*ROWS[:25], {"text": "ROW 25", "other": "other 25"}, *ROWS[26:]])
    assert corpus.changed(storage) == [2]


def test_a_remote_file_is_known_by_what_its_store_says():
    def write(text):
        with fsspec.open("memory://versions/a.txt", "w") as file:
            file.write(text)

    storage = Storage("memory://versions-out")
    write("one")
    Corpus("memory://versions", "text").record(storage)
    assert Corpus("memory://versions", "text").changed(storage) == []
    write("two")
    assert Corpus("memory://versions", "text").changed(storage) == [0]


def test_a_file_that_is_gone_or_unknown_is_no_change(tmp_path):
    raw, storage = tmp_path / "a.txt", Storage(tmp_path / "out")
    raw.write_text("text")
    corpus = Corpus(raw, "text")
    assert corpus.changed(storage) == []
    corpus.record(storage)
    raw.unlink()
    assert corpus.changed(storage) == []


def test_a_few_names_are_shown():
    assert shown_files([["b", "a"], ["a", "c", "d"]]) == "a, b, c and 1 more"
    assert Entry("a", 1, "a").version == ""


@pytest.mark.parametrize("content", [b"", b"{}", b'{"key": "key", "files": [1]}'])
def test_a_damaged_record_says_nothing(tmp_path, content):
    (tmp_path / "a.txt").write_text("text")
    storage = Storage(tmp_path / "out")
    storage.write("docs/part-0.sources.json", content)
    assert Corpus(tmp_path / "a.txt", "text").changed(storage) == []

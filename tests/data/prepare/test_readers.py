import gzip
import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Row
from lclm_jax.data.prepare.readers import list_entries, read_rows
from lclm_jax.errors import LclmError

ROWS = [{"text": f"row {i} " + "é" * (i % 7), "n": i} for i in range(40)]


def everything(collection, part_bytes=10**9):
    return [row for entry in list_entries(collection, part_bytes) for row in read_rows(entry, collection)]


def texts(collection, part_bytes=10**9):
    return [row.values["text"] for row in everything(collection, part_bytes)]


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def arrow(rows, stream=True):
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("part_bytes", [1, 50, 333, 10**6])
def test_plain_json_lines_in_parts_of_any_size(tmp_path, part_bytes):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    collection = CollectionConfig(format="jsonl", paths=(str(tmp_path),))
    rows = everything(collection, part_bytes)
    assert [row.values for row in rows] == [{"text": row["text"]} for row in ROWS]
    assert len({row.place for row in rows}) == len(ROWS)
    assert [row.place for row in rows] == [row.place for row in everything(collection)]


@given(st.lists(st.text(max_size=12), max_size=12), st.integers(1, 40), st.booleans())
def test_every_line_is_in_one_part(tmp_path_factory, lines, part_bytes, last_newline):
    folder = tmp_path_factory.mktemp("lines")
    content = "\n".join(json.dumps({"text": line}) for line in lines) + "\n" * last_newline
    (folder / "a.jsonl").write_text(content)
    assert texts(CollectionConfig(format="jsonl", paths=(str(folder / "a.jsonl"),)), part_bytes) == lines


@pytest.mark.parametrize("where", ["file", "memory"])
def test_compressed_json_lines_local_and_remote(tmp_path, where):
    root = str(tmp_path) if where == "file" else "memory://readers-jsonl"
    for name, content in {
        "a.jsonl.gz": gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
        "b/c.jsonl.zst": zstd(LINES),
        "d.jsonl": LINES,
        "ignored.txt": b"",
    }.items():
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(content)
    collection = CollectionConfig(format="jsonl", paths=(root,))
    assert [entry.id for entry in list_entries(collection, 10**6)] == ["a.jsonl.gz", "b/c.jsonl.zst", "d.jsonl"]
    assert texts(collection, 100) == [row["text"] for row in ROWS] * 3
    glob = CollectionConfig(format="jsonl", paths=(f"{root}/*/*.zst", f"{root}/d.jsonl"))
    assert [entry.id for entry in list_entries(glob, 10**6)] == ["b/c.jsonl.zst", "d.jsonl"]


def test_bad_lines_spoil_nothing_but_themselves(tmp_path):
    lines = [b'{"text": "a"}', b"{", b'{"text": "\xff"}', b"[1]", b"", b'{"other": 1}', b'{"text": "b"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = everything(CollectionConfig(format="jsonl", paths=(str(tmp_path),)))
    shown = [row.reason if isinstance(row, Bad) else row.values for row in rows]
    assert shown == [{"text": "a"}, "invalid_json", "undecodable", "wrong_type", {}, {"text": "b"}]
    assert rows[1].place == "a.jsonl:14"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_truncated_stream_gives_what_it_has_and_says_so(tmp_path, name):
    content = gzip.compress(LINES) if name.endswith("gz") else zstd(LINES * 200)
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    rows = everything(CollectionConfig(format="jsonl", paths=(str(tmp_path / name),)))
    assert rows[-1].reason in ("unreadable", "invalid_json")
    assert all(isinstance(row, Row) for row in rows[:-1])


def test_parquet_by_row_groups(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=6)
    collection = CollectionConfig(format="parquet", paths=(str(tmp_path),))
    size = (tmp_path / "a.parquet").stat().st_size
    entries = list_entries(collection, size // 3)
    assert [(entry.start, entry.stop) for entry in entries] == [(0, 2), (2, 4), (4, 7)]
    rows = everything(collection, size // 3)
    assert [row.values for row in rows] == [{"text": row["text"]} for row in ROWS]
    assert [row.place for row in rows] == [f"a.parquet:{i}" for i in range(40)]


def test_text_of_a_table_that_is_not_utf8_spoils_its_row_alone(tmp_path):
    values = pa.array([b"good", b"\xff\xfe", b"also"], pa.binary())
    broken = pa.StringArray.from_buffers(3, values.buffers()[1], values.buffers()[2])
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    rows = everything(CollectionConfig(format="parquet", paths=(str(tmp_path),)))
    assert [row.reason if isinstance(row, Bad) else row.values["text"] for row in rows] == [
        "good",
        "undecodable",
        "also",
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_hugging_face_dataset_on_disk(tmp_path, stream):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
        (tmp_path / split / "data-00000-of-00001.arrow").write_bytes(arrow(ROWS, stream))
    assert texts(CollectionConfig(format="arrow", paths=(str(tmp_path / "train"),))) == [row["text"] for row in ROWS]
    assert len(texts(CollectionConfig(format="arrow", paths=(str(tmp_path),)))) == 80


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_corrupt_tables_are_counted(tmp_path, form):
    (tmp_path / f"a.{form}").write_bytes(b"PAR1 this is no table")
    rows = everything(CollectionConfig(format=form, paths=(str(tmp_path),)))
    assert [row.reason for row in rows] == ["unreadable"]


def test_missing_paths_say_what_to_do(tmp_path):
    with pytest.raises(LclmError, match="names no file to read"):
        list_entries(CollectionConfig(format="text", paths=(str(tmp_path / "none"),)), 1)
    with pytest.raises(LclmError, match="names no file to read"):
        list_entries(CollectionConfig(format="text", paths=("memory://none",)), 1)
    with pytest.raises(ValueError, match="name the files to read"):
        CollectionConfig(format="jsonl")

"""Encodings, compression and formats, told by what is in a file."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Row
from lclm_jax.data.prepare.readers import list_entries, read_rows
from lclm_jax.errors import LclmError

ROWS = [{"text": f"Слово {i} и ещё, word {i} \u2028 here"} for i in range(50)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def arrow_compressed(kind):
    def compress(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, kind) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESSIONS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": arrow_compressed("zstd"),
    "lz4": arrow_compressed("lz4"),
}


def read(tmp_path, data, name="a.jsonl", form="jsonl", part_bytes=10**9, **more):
    (tmp_path / name).write_bytes(data)
    collection = CollectionConfig(format=form, paths=(str(tmp_path / name),), **more)
    return [row for entry in list_entries(collection, part_bytes) for row in read_rows(entry, collection)]


def values(rows):
    return [row.values for row in rows]


def one_fault(rows, reason):
    (bad,) = [row for row in rows if isinstance(row, Bad)]
    assert (bad.reason, bad.whole) == (reason, True)
    return bad.excerpt


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.JSONL.ZST"])
def test_compression_is_told_by_content(tmp_path, kind, name):
    compress = COMPRESSIONS[kind]
    assert values(read(tmp_path, compress(LINES[:999]) + compress(LINES[999:]), name, part_bytes=64)) == ROWS
    assert read(tmp_path, compress(b""), name) == []


def test_what_is_not_compressed_is_read_in_parts_whatever_its_name(tmp_path):
    assert values(read(tmp_path, LINES, "a.jsonl.gz", part_bytes=99)) == ROWS


def test_zstd_with_a_frame_to_skip_in_front(tmp_path):
    frame = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert values(read(tmp_path, frame + COMPRESSIONS["zstd"](LINES))) == ROWS


def long_lines():
    rows = [{"text": f"{zlib.crc32(bytes([i % 256, i // 256])):x} " * 9} for i in range(3000)]
    return rows, "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_what_breaks_off_is_kept_and_said(tmp_path, kind):
    rows, data = long_lines()
    data = COMPRESSIONS[kind](data)
    found = read(tmp_path, data[: len(data) * 3 // 4])
    assert "rows)" in one_fault(found, "unreadable")
    assert values(found[:-1]) == rows[: len(found) - 1]


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])  # the others are written without checksums
def test_damage_inside_names_the_file(tmp_path, kind):
    rows, data = long_lines()
    data = bytearray(COMPRESSIONS[kind](data))
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    found = read(tmp_path, bytes(data))
    assert (found[-1].reason, found[-1].whole) == ("unreadable", True)
    if kind == "gzip":
        assert values(found[: len(rows) // 4]) == rows[: len(rows) // 4]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("form", ["jsonl", "text", "jsonl.gz"])
def test_wide_encodings_are_refused_with_or_without_a_mark(tmp_path, encoding, form):
    data = LINES.decode().encode(encoding)
    if form.endswith("gz"):
        data = gzip.compress(data)
    rows = read(tmp_path, data, form=form.split(".")[0], part_bytes=500)
    assert all(not isinstance(row, Row) for row in rows)
    assert all("iconv -f UTF-" in row.excerpt and row.reason == "undecodable" for row in rows)


def test_a_big_endian_mark_is_known(tmp_path):
    assert "UTF-16" in one_fault(read(tmp_path, b"\xfe\xff" + LINES.decode().encode("utf-16-be")), "undecodable")


def test_utf8_with_a_mark(tmp_path):
    assert values(read(tmp_path, b"\xef\xbb\xbf" + LINES)) == ROWS
    assert values(read(tmp_path, gzip.compress(b"\xef\xbb\xbf" + LINES))) == ROWS


def test_latin_1_is_counted_and_never_guessed(tmp_path):
    rows = read(tmp_path, b'{"text": "caf\xe9"}\n{"text": "plain"}\n{"text": "caf\xc3\xa9"}\n')
    assert [row.reason if isinstance(row, Bad) else row.values["text"] for row in rows] == [
        "undecodable",
        "plain",
        "café",
    ]
    assert "iconv -f WINDOWS-1252" in rows[0].excerpt
    fault = one_fault(read(tmp_path, b"un caf\xe9 noir", form="text"), "undecodable")
    assert "at byte 6 is not UTF-8" in fault
    assert values(read(tmp_path, "aé".encode() * 9, form="text", max_document_bytes=1)) == [{"text": b"a\xc3"}]


@pytest.mark.parametrize("text", [b"text\0with zero", b"\0\0\0\0text", "日本".encode("iso-2022-jp")])
def test_what_is_no_text_is_refused(tmp_path, text):
    one_fault(read(tmp_path, text, form="text"), "undecodable")


def test_zero_bytes_spoil_their_json_line_alone(tmp_path):
    rows = read(tmp_path, b'{"text": "one"}\n{"text": "t\0wo"}\n\0\0\0\0\n{"text": "three"}\n')
    assert [row.reason if isinstance(row, Bad) else row.values["text"] for row in rows] == [
        *("one", "invalid_json", "invalid_json", "three")
    ]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n\r\n", "\n"])
def test_line_ends(tmp_path, end):
    assert values(read(tmp_path, LINES.replace(b"\n", end.encode()), part_bytes=70)) == ROWS


def test_a_json_array_is_read_by_its_elements(tmp_path):
    for indent in (None, 2):
        data = json.dumps(ROWS, indent=indent, ensure_ascii=False).encode()
        assert values(read(tmp_path, data, part_bytes=100)) == ROWS
        assert values(read(tmp_path, gzip.compress(b"\xef\xbb\xbf" + data + b"\n"))) == ROWS
        rows = read(tmp_path, data[: len(data) // 2])
        assert "breaks off" in one_fault(rows, "invalid_json")
        assert values(rows[:-1]) == ROWS[: len(rows) - 1]
    assert read(tmp_path, b"[]") == []
    assert "something follows" in one_fault(read(tmp_path, b'[{"text": "a"}] x'), "invalid_json")


def test_lists_a_line_are_no_array(tmp_path):
    rows = read(tmp_path, b'[{"text": "a"}]\n[{"text": "b"}]\n')
    assert [row.reason for row in rows] == ["wrong_type", "wrong_type"]


def test_rows_of_several_lines_are_refused_once(tmp_path):
    data = "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()
    assert "jq -c" in one_fault(read(tmp_path, data), "invalid_json")


def packed(kind):
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("a", LINES)
    else:
        with tarfile.open(fileobj=sink, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a"))
    return sink.getvalue()


def table(kind):
    sink, made = io.BytesIO(), pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(made, sink)
    else:
        with pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "form", "word"),
    [
        (packed("zip"), "jsonl", "ZIP archive; unpack it"),
        (packed("tar"), "jsonl", "tar archive"),
        (gzip.compress(packed("tar")), "text", "tar archive"),
        (gzip.compress(gzip.compress(LINES)), "jsonl", "compressed twice"),
        (table("parquet"), "jsonl", "set format: parquet"),
        (table("parquet"), "arrow", "set format: parquet"),
        (table("arrow"), "parquet", "set format: arrow"),
        (gzip.compress(table("parquet")), "parquet", "compressed as a whole"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "parquet", "git lfs pull"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "jsonl", "git lfs pull"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",  # compressed files hold the time
)
def test_other_formats_are_refused_by_name(tmp_path, data, form, word):
    assert word in one_fault(read(tmp_path, data, form=form), "unreadable")


@pytest.mark.parametrize("text", [b"PAR1 is a gene.", b"ORC is a format.", b"BZhou wrote it.", b"PK\n"])
def test_text_that_begins_like_another_format_is_text(tmp_path, text):
    assert values(read(tmp_path, text, form="text")) == [{"text": text}]


def test_a_damaged_page_of_a_table_keeps_the_row_groups_before_it(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=10, compression="zstd", use_dictionary=False)
    data = bytearray(sink.getvalue())
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(3).column(0)
    data[column.data_page_offset + 40 : column.data_page_offset + 120] = bytes(80)
    rows = read(tmp_path, bytes(data), form="parquet")
    assert values(rows[:-1]) == ROWS[: len(rows) - 1]
    one_fault(rows, "unreadable")


def test_the_columns_that_there_are_go_with_each_row(tmp_path):
    data = "\n".join(json.dumps({"content": "a", "url": "b"}) for _ in range(2)).encode()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"content": "a", "url": "b"}] * 2), sink)
    for form, raw in (("jsonl", data), ("parquet", sink.getvalue())):
        rows = read(tmp_path, raw, form=form)
        assert [(row.values, row.columns) for row in rows] == [({}, ("content", "url"))] * 2


def test_offsets_of_arrow_that_point_nowhere_are_no_crash(tmp_path):
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\xff\xff\0\0\x03\0\0\0"), pa.py_buffer(b"abc"))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch({"text": broken}))
    assert "offset" in one_fault(read(tmp_path, sink.getvalue(), form="arrow"), "unreadable").lower()


def test_a_time_that_python_lacks_spoils_its_row_alone(tmp_path):
    times = pa.array([0, 2**62, 1], pa.timestamp("us"))
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b", "c"], "when": times}), sink)
    rows = read(tmp_path, sink.getvalue(), form="parquet", columns={"id": "when"})
    assert [row.reason if isinstance(row, Bad) else row.values["text"] for row in rows] == ["a", "wrong_type", "c"]


def test_a_line_or_text_that_is_too_long_is_counted(tmp_path):
    data = b'{"text": "a"}\n{"text": "' + b"b" * 300 + b'"}\n{"text": "c"}\n'
    for part_bytes in (10**9, 40):
        rows = read(tmp_path, data, part_bytes=part_bytes, max_row_bytes=50)
        assert [row.reason if isinstance(row, Bad) else row.values["text"] for row in rows] == ["a", "too_long", "c"]
    assert "max_document_bytes" in one_fault(read(tmp_path, b"x" * 101, form="text", max_row_bytes=100), "too_long")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError(), TimeoutError(110, "timed out")])
def test_what_is_not_the_fault_of_the_file_ends_the_preparation(tmp_path, monkeypatch, error):
    def refuse(path):
        raise error

    from lclm_jax.data.prepare.readers import text

    monkeypatch.setattr(text, "open_text", refuse)
    with pytest.raises(LclmError, match=r"cannot read a.txt: .*prepare again"):
        read(tmp_path, b"x", "a.txt", form="text")

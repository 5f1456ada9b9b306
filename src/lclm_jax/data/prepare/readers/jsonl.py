"""JSON lines, plain (read in parts by byte range) or compressed (read whole), and JSON arrays (read whole)."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.content import UnusableFileError, is_array, is_divisible, open_text
from lclm_jax.data.prepare.readers.files import file_bytes, list_files, open_file, wanted_columns

_EXCERPT = 200
_CHUNK = 2**20
_LINE = 2
"""A line may be this many times as long as the text of a row may be."""

_Lines = Iterator[tuple[int, bytes | None]]
"""(where it begins, the line, or None for one that is too long)."""


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry for a file that is read whole, one for every ``part_bytes`` of others."""
    entries = []
    for file in list_files(collection):
        divisible = file.size > part_bytes and is_divisible(file.path)
        starts = range(0, max(file.size, 1), part_bytes) if divisible else range(1)
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            entries.append(Entry(file.name, (stop or file.size) - start, file.path, start, stop, file.version))
    return entries


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A row is named by the byte at which its line begins (in a compressed file: of its content), or its number."""
    columns, longest = wanted_columns(collection), _LINE * collection.max_row_bytes
    if entry.start or entry.stop is not None:  # the file was looked at before it was divided
        with open_file(entry.path) as file:
            yield from _rows(_lines(file, entry, longest), entry.id, columns, longest)
        return
    with open_text(entry.path) as (file, head):
        if is_array(head):
            yield from _array(file, entry.id, columns, longest)
            return
        if head.split(b"\n", 1)[0].strip() == b"{":
            raise UnusableFileError("invalid_json", "its rows take several lines each; write one a line: jq -c .")
        yield from _rows(_lines(file, entry, longest), entry.id, columns, longest)


def raw_bytes(entry: Entry) -> Iterator[bytes]:
    """From the byte before the part, which may end the line before, to the end of the line that its end is in."""
    yield from file_bytes(entry.path, max(entry.start - 1, 0), entry.stop)
    if entry.stop is not None:
        with open_file(entry.path) as file:
            file.seek(entry.stop - 1)
            yield file.readline()


def _rows(lines: _Lines, name: str, columns: list[str], longest: int) -> Iterator[Row | Bad]:
    for position, line in lines:
        if line is None:
            shown = f"a line of over {longest:,} bytes, {_LINE} times max_row_bytes; divide it"
            yield Bad(f"{name}:{position}", "too_long", shown)
        else:
            yield from _row(line, f"{name}:{position}", columns)


def _lines(file: BinaryIO, entry: Entry, longest: int) -> _Lines:
    """Every line that begins in the entry's part."""
    position = entry.start
    if position:
        file.seek(position - 1)
        position += _rest_of_line(file) - 1  # the line that the part before began
    while entry.stop is None or position < entry.stop:
        line = file.readline(longest)
        if not line:
            return
        if len(line) < longest or line.endswith(b"\n"):
            yield position, line
            position += len(line)
        else:
            yield position, None
            position += longest + _rest_of_line(file)


def _rest_of_line(file: BinaryIO) -> int:
    """Skip what is left of a line; returns how many bytes it was."""
    size = 0
    while piece := file.readline(_CHUNK):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _row(line: bytes, place: str, columns: list[str]) -> Iterator[Row | Bad]:
    """The row of ``line``; its rows, where lines end with a carriage return alone."""
    if not line.strip():
        return
    try:
        # Not json.loads(line), which guesses at other encodings, line by line.
        yield _checked(json.loads(line.decode("utf-8-sig")), place, columns, line)
    except UnicodeDecodeError as error:
        shown = repr(line[max(0, error.start - 20) : error.start + 20])
        mend = "not UTF-8; if the file is Latin-1 or Windows-1252, convert it: iconv -f WINDOWS-1252 -t UTF-8"
        yield Bad(place, "undecodable", f"{shown} is {mend}")
    except (ValueError, RecursionError):
        pieces = line.strip().split(b"\r")  # not allowed within a value, so it ends a line
        if len(pieces) == 1:
            yield Bad(place, "invalid_json", _excerpt(line))
        for number, piece in enumerate(pieces if len(pieces) > 1 else ()):
            yield from _row(piece, f"{place}:{number}", columns)


def _checked(values: Any, place: str, columns: list[str], shown: bytes) -> Row | Bad:
    if not isinstance(values, dict):
        return Bad(place, "wrong_type", _excerpt(shown))
    return Row(place, {column: values[column] for column in columns if column in values}, tuple(values))


def _array(file: BinaryIO, name: str, columns: list[str], longest: int) -> Iterator[Row | Bad]:
    """The elements of one JSON array, without holding more of it than the largest of them takes."""
    parse, decode = json.JSONDecoder().raw_decode, codecs.getincrementaldecoder("utf-8-sig")().decode
    text, at, wanted, number = "", 0, _CHUNK, 0
    opened = ended = False
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == ("," if opened else "[")):
            opened |= text[at] == "["
            at += 1
        if text.startswith("]", at):
            break
        try:
            values, at = parse(text, at)
        except (ValueError, RecursionError):
            if ended or len(text) - at > longest:
                raise UnusableFileError("invalid_json", f"its array breaks off or is no JSON in row {number}") from None
            content = file.read(wanted)
            ended, wanted = not content, max(_CHUNK, len(text) - at)
            text, at = text[at:] + decode(content, ended), 0
            continue
        yield _checked(values, f"{name}:{number}", columns, repr(values)[:_EXCERPT].encode())
        number += 1
    if (text[at + 1 :] + decode(file.read(_CHUNK))).strip():
        raise UnusableFileError("invalid_json", "something follows its array; write one row a line: jq -c '.[]'")


def _excerpt(line: bytes) -> str:
    return line[:_EXCERPT].decode("utf-8", "replace")

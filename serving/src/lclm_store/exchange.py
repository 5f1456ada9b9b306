"""Entries of a store as a safetensors file: one tensor of raw bytes per window, what they are in the metadata."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lclm_store.codes import unpack
from lclm_store.errors import StoreError

Entry = tuple[str, str, int, int, bytes]
"""(key, code, rows, width, data)."""
FORMAT = "lclm latents 1"
_LONGEST_HEADER = 1 << 30


def write_entries(path: Path, entries: Iterable[Entry]) -> int:
    """Write entries to ``path``, which takes its name when all is written; returns how many there were.

    Memory holds one entry and the header; the data go to a file of their own first, as a header comes before them.
    """
    data, part = (path.with_name(path.name + end) for end in (".data", ".part"))
    header: dict[str, object] = {}
    kinds, offset = {}, 0
    try:
        with data.open("wb") as file:
            for key, code, rows, width, content in entries:
                file.write(content)
                header[key] = {
                    "dtype": "U8",
                    "shape": [len(content)],
                    "data_offsets": [offset, offset + len(content)],
                }
                kinds[key] = [code, rows, width]
                offset += len(content)
        header["__metadata__"] = {"format": FORMAT, "entries": json.dumps(kinds, separators=(",", ":"))}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with part.open("wb") as file, data.open("rb") as source:
            file.write(len(text).to_bytes(8, "little") + text)
            while block := source.read(1 << 24):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        data.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return len(kinds)


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a file of ``write_entries``; raises ``StoreError`` if it is anything else, or cut short."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LONGEST_HEADER:
                raise ValueError("no safetensors file")
            header = json.loads(file.read(size))
            metadata = header.pop("__metadata__")
            if metadata["format"] != FORMAT:
                raise ValueError(f"format {metadata['format']!r} is not {FORMAT!r}")
            kinds = json.loads(metadata["entries"])
            for key, entry in header.items():
                start, stop = entry["data_offsets"]
                file.seek(8 + size + start)
                content = file.read(stop - start)
                code, rows, width = kinds[key]
                if unpack(content, code, rows, width) is None:
                    raise ValueError(f"entry {key} is cut short")
                yield key, code, rows, width, content
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not a file that a store exported ({error}); export it again") from None

"""What a suite has measured so far: JSON lines that a killed process leaves readable, and a rerun goes on from."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject


class Journal:
    """Records of one file, a line each; the last one with a key counts.

    A line that a kill cut off is dropped, and the next one begins in its place.

    Args:
        path: the file; folders are made.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records: dict[str, JsonObject] = {}
        self._file: BinaryIO | None = None
        self._end = self._read()

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(self._end)
        self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None, "entered"
        self._file.close()

    def append(self, record: JsonObject) -> None:
        """Write ``record``, which has a ``key``; it is on disk when this returns."""
        assert self._file is not None, "entered"
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["key"]] = record

    def _read(self) -> int:
        """Fill ``records``; returns the bytes that are whole lines."""
        if not self.path.exists():
            return 0
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                self._keep(line, number)
                end += len(line)
        return end

    def _keep(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            self.records[record["key"]] = record
        except (ValueError, TypeError, KeyError):
            raise LclmError(
                f"{self.path}, line {number}: no record of a suite; move the file away to measure again"
            ) from None


def key_of(*parts: Mapping[str, object]) -> str:
    """What identifies a measurement: changed settings or another text give another key."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def read_lines(path: Path) -> Iterator[JsonObject]:
    """The objects of a JSON lines file that this package wrote whole."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)

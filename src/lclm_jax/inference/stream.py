"""A safetensors file that is written tensor by tensor and resumes where it was interrupted.

``FILE.part`` begins with its whole header, as all shapes are known before; behind it the tensors stand in order.
``FILE.part.jsonl`` is the journal: what identifies the job, then one line per tensor, written after its bytes are on
the disk. What the journal does not list is cut off and written again.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.files import write_text
from lclm_jax.interop.safetensors_io import DTYPES
from lclm_jax.types import JsonObject, ReadOnlyJson

SYNC_SECONDS = 1.0
"""Work that a lost machine may cost, at most about so much."""


class TensorStream:
    """The file being written: a context manager.

    Args:
        path: file to make; it appears under its name in ``finish``.
        shapes: name -> shape of every tensor, in the order in which they are appended.
        dtype: of all of them, a key of ``DTYPES``.
        source: identifies the job; parts of another one are discarded.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], dtype: str, source: str):
        self.path, self.source = path, source
        self.part = path.with_name(path.name + ".part")
        self.journal = path.with_name(path.name + ".part.jsonl")
        self._code, self._dtype = DTYPES[dtype]
        self._sizes = [math.prod(shape) * self._dtype.itemsize for shape in shapes.values()]
        self._header = self._make_header(shapes)
        self.done = self._kept()
        """Records of the tensors that an interrupted call finished."""

    def __enter__(self) -> "TensorStream":
        lines = [{"source": self.source}, *self.done]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(self.journal, text)  # cut off behind the last whole line, at once
        self._log = self.journal.open("a", encoding="utf-8")
        self._data = self.part.open("r+b" if self.done else "wb")
        if not self.done:
            self._data.write(self._header)
        self._data.truncate(self._end(len(self.done)))
        self._data.seek(0, os.SEEK_END)
        self._logged, self._synced = len(self.done), time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._sync()
        self._data.close()
        self._log.close()

    def append(self, array: np.ndarray, record: ReadOnlyJson) -> None:
        """Write the next tensor and its record; they reach the disk within a second or so of writing."""
        self._data.write(np.ascontiguousarray(array, self._dtype).reshape(-1).view(np.uint8).data)
        self.done.append(dict(record))
        assert self._data.tell() == self._end(len(self.done)), "tensors of the declared shapes"
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        _sync(self._data)  # before the journal says that it is there
        self._log.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in self.done[self._logged :])
        _sync(self._log)
        self._logged, self._synced = len(self.done), time.monotonic()

    def _make_header(self, shapes: Mapping[str, Sequence[int]]) -> bytes:
        header: JsonObject = {"__metadata__": {"format": "pt", "source": self.source}}
        at = 0
        for (name, shape), size in zip(shapes.items(), self._sizes, strict=True):
            header[name] = {"dtype": self._code, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format asks for data aligned to eight bytes
        return len(text).to_bytes(8, "little") + text

    def _end(self, count: int) -> int:
        return len(self._header) + sum(self._sizes[:count])

    def _kept(self) -> list[JsonObject]:
        if not (self.part.is_file() and self.journal.is_file()):
            return []
        first, *records = read_records(self.journal) or [{}]
        with self.part.open("rb") as file:
            if first != {"source": self.source} or file.read(len(self._header)) != self._header:
                return []
        size = self.part.stat().st_size
        return [record for count, record in enumerate(records[: len(self._sizes)], 1) if self._end(count) <= size]


def read_records(path: Path) -> list[JsonObject]:
    """The objects of a JSONL file up to the first line that is not whole."""
    records = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(record, dict):
            break
        records.append(record)
    return records


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())

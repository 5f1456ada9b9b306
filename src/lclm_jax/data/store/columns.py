"""Lists of different lengths as two arrays: all values end to end, and where each list begins."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject


class Ragged(NamedTuple):
    """List i is ``values[offsets[i] : offsets[i + 1]]``."""

    offsets: np.ndarray
    """int64 [lists + 1]."""
    values: np.ndarray

    @classmethod
    def from_sizes(cls, sizes: np.ndarray, values: np.ndarray) -> "Ragged":
        """Cut ``values`` into lists of ``sizes``."""
        return cls(np.append(0, np.cumsum(sizes)).astype(np.int64), values)

    @property
    def sizes(self) -> np.ndarray:
        """Length of each list, int64 [lists]."""
        return np.diff(self.offsets)

    def owners(self) -> np.ndarray:
        """Index of the list that each value belongs to, int64 [values]."""
        return np.repeat(np.arange(self.offsets.size - 1), self.sizes)

    def places(self) -> np.ndarray:
        """Place of each value in its list, int64 [values]."""
        return np.arange(self.values.size) - np.repeat(self.offsets[:-1], self.sizes)

    def sums(self) -> np.ndarray:
        """Sum of each list, int64 [lists]; 0 for an empty one."""
        totals = np.append(0, np.cumsum(self.values, dtype=np.int64))
        return totals[self.offsets[1:]] - totals[self.offsets[:-1]]

    def take(self, lists: np.ndarray | Sequence[int]) -> "Ragged":
        """The given lists in the given order."""
        chosen = np.asarray(lists, np.int64)
        sizes = self.sizes[chosen]
        ends = np.cumsum(sizes)
        places = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(self.offsets[chosen] - ends + sizes, sizes)
        return Ragged(np.append(0, ends), self.values[places])

    def list(self, index: int) -> np.ndarray:
        """One list."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def join(parts: Sequence[Ragged]) -> Ragged:
    """The lists of all ``parts`` in turn; none of int64 for no parts."""
    if not parts:
        return Ragged(np.zeros(1, np.int64), np.zeros(0, np.int64))
    return Ragged.from_sizes(np.concatenate([part.sizes for part in parts]), np.concatenate([p.values for p in parts]))


_DTYPES = {"U8": "u1", "U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8"}

_MAX_HEADER = 2**24


def map_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a safetensors file of one-dimensional integers, as views of the mapped file.

    Raises:
        LclmError: The file is not such a file.
        OSError: It cannot be opened.
    """
    with path.open("rb") as file:
        header, start = _header(path, file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    columns = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        (count,), (first, last) = entry["shape"], entry["data_offsets"]
        if start + last > len(mapped):
            raise LclmError(f"{path} is truncated: column {name} would end at byte {start + last} of {len(mapped)}")
        dtype = _DTYPES[entry["dtype"]]
        columns[name] = np.frombuffer(mapped, dtype, count, start + first) if count else np.zeros(0, dtype)
    return columns


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its columns; raises as ``map_columns``."""
    with path.open("rb") as file:
        return _header(path, file)[0].get("__metadata__", {})


def _header(path: Path, file: BinaryIO) -> tuple[JsonObject, int]:
    """The header of a safetensors file, and where its data begin."""
    size = int.from_bytes(file.read(8), "little")
    text = file.read(min(size, _MAX_HEADER))
    if not 0 < len(text) == size:
        raise LclmError(f"{path} is truncated or not a safetensors file: its header would have {size} bytes")
    return json.loads(text), 8 + size


def text_column(text: str) -> np.ndarray:
    """UTF-8 bytes of ``text``, uint8."""
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def column_text(column: np.ndarray) -> str:
    """The text of ``text_column``."""
    return column.tobytes().decode("utf-8")

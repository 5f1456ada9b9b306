"""Lengths files: what planning needs to know of each record of a shard, without the record.

Columns of a safetensors file: a number per record stands under its name; lists stand end to end, each in the coding of
its column (``NAME.CODING/values``), with the bytes of each (``NAME.CODING/sizes``). Files of format 2 hold lists as
they are (``NAME/values``, ``NAME/offsets``); both are read.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from lclm_jax.data.store.codings import CODINGS
from lclm_jax.data.store.columns import Ragged, map_columns
from lclm_jax.data.store.records import CODING_OF, RAGGED, SCALARS
from lclm_jax.data.store.storage import PreparedError
from lclm_jax.errors import LclmError


class LengthsBuilder:
    """Collects the columns of a lengths file, record by record."""

    def __init__(self, kind: str):
        self._scalars: dict[str, list[int]] = {name: [] for name in SCALARS[kind]}
        self._lists: dict[str, list[bytes]] = {name: [] for name in RAGGED[kind]}

    def add(self, numbers: Mapping[str, int], lists: Mapping[str, np.ndarray]) -> None:
        """One more record; a list that it does not have takes no bytes."""
        for name, values in self._scalars.items():
            values.append(numbers[name])
        for name, coded in self._lists.items():
            coded.append(CODINGS[CODING_OF[name]][0](lists[name]).tobytes() if name in lists else b"")

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the file; lists that no record has are left out."""
        columns = {name: np.array(values, np.uint32) for name, values in self._scalars.items()}
        for name, coded in self._lists.items():
            stem = f"{name}.{CODING_OF[name]}"
            if any(coded) or name != "encoder_cuts":
                columns[f"{stem}/sizes"] = np.fromiter(map(len, coded), np.uint32, len(coded))
                columns[f"{stem}/values"] = np.frombuffer(b"".join(coded), np.uint8)
        return columns


class Lengths:
    """The lengths file of one shard, mapped.

    Args:
        path: the file.

    Raises:
        PreparedError: it cannot be read.
    """

    def __init__(self, path: Path):
        try:
            self._columns = map_columns(path)
        except (OSError, LclmError, ValueError, KeyError) as error:
            raise PreparedError(f"cannot read {path}: {error}; prepare the data again") from None

    def numbers(self, name: str) -> np.ndarray:
        """A number per record, uint32 [records]; raises ``KeyError`` if there is none of this name."""
        return self._columns[name]

    def lists(self, name: str, rows: np.ndarray) -> Ragged | None:
        """The lists ``name`` of ``rows``, int64; None if the file has none of this name.

        A record whose two tokenizations are the same has no ``encoder_cuts`` of its own: they are its ``cuts``.
        """
        found = self._lists(name, rows)
        if name != "encoder_cuts" or found is None or found.sizes.all():
            return found
        shared = np.flatnonzero(found.sizes == 0)
        own = self._lists("cuts", rows[shared])
        assert own is not None, "documents have cuts"
        sizes = found.sizes.copy()
        sizes[shared] = own.sizes
        joined = Ragged.from_sizes(sizes, np.empty(int(sizes.sum()), np.int64))
        of_shared = np.isin(joined.owners(), shared)
        joined.values[of_shared], joined.values[~of_shared] = own.values, found.values
        return joined

    def _lists(self, name: str, rows: np.ndarray) -> Ragged | None:
        plain = self._columns.get(f"{name}/offsets")
        if plain is not None:
            return _gather(plain, self._columns[f"{name}/values"], rows, np.int64)
        offsets = self._offsets.get(name)
        if offsets is None:
            return None
        coding = CODING_OF[name]
        return CODINGS[coding][1](_gather(offsets, self._columns[f"{name}.{coding}/values"], rows, np.uint8))

    @cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        """Name -> where each record's bytes begin, int64 [records + 1]."""
        found = {}
        for name, coding in CODING_OF.items():
            sizes = self._columns.get(f"{name}.{coding}/sizes")
            if sizes is not None:
                found[name] = np.append(0, np.cumsum(sizes, dtype=np.int64))
        return found


def _gather(offsets: np.ndarray, values: np.ndarray, rows: np.ndarray, dtype: type) -> Ragged:
    """The lists of ``rows`` of a file's column."""
    starts = offsets[rows]
    sizes = offsets[rows + 1] - starts
    places = np.arange(int(sizes.sum())) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
    return Ragged.from_sizes(sizes, values[places].astype(dtype, copy=False))

"""Rows of a collection by the values of their columns (``where``)."""

from collections.abc import Iterator, Mapping

from lclm_jax.config import CollectionConfig, CorpusConfig
from lclm_jax.data.documents import Row
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.types import ReadOnlyJson

_VALUES = 100
"""Different values of a part that are counted one by one."""
_REASON = "not_selected"
_SHOWN = 60


class RowSelection:
    """Which rows a collection takes; the others are counted as ``not_selected:COLUMN=VALUE``."""

    def __init__(self, collection: CollectionConfig, counter: RejectCounter):
        self._wanted = {column: frozenset(values) for column, values in collection.where.items()}
        self._counter, self._seen = counter, set[str]()

    def takes(self, row: Row) -> bool:
        """Whether every column of ``where`` has a value that is wanted; a row without one is rejected."""
        for column, wanted in self._wanted.items():
            value = row.values.get(column)
            if value is None:
                self._counter.reject("missing_column", row.place, f"{column} is missing or null, and where asks for it")
                return False
            if str(value) not in wanted:
                self._note(f"{_REASON}:{column}={str(value)[:_SHOWN]}")
                return False
        return True

    def _note(self, reason: str) -> None:
        if len(self._seen) < _VALUES:
            self._seen.add(reason)
        self._counter.note(reason if reason in self._seen else _REASON)


def without_values(counts: Mapping[str, int]) -> dict[str, int]:
    """``counts`` with the rows that ``where`` leaves to other collections as one number, for messages."""
    kept = {reason: count for reason, count in counts.items() if not reason.startswith(_REASON)}
    left = sum(counts.values()) - sum(kept.values())
    return kept | ({_REASON: left} if left else {})


def unclaimed(corpus: CorpusConfig, collections: Mapping[str, ReadOnlyJson]) -> Iterator[str]:
    """A line for every value by which rows of some files are in no collection at all.

    Args:
        corpus: The collections; those of the same paths share the rows among them.
        collections: The same in the manifest.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, collection in corpus.collections.items():
        groups.setdefault(collection.paths, []).append(name)
    for names in groups.values():
        own = [corpus.collections[name].where for name in names]
        if not all(own):
            continue
        counts: dict[str, int] = {}
        for name in names:
            for split in collections[name].values():
                counts |= {k: n for k, n in split["counts"].items() if k.startswith(f"{_REASON}:")}
        for reason, count in sorted(counts.items()):
            column, _, value = reason.removeprefix(f"{_REASON}:").partition("=")
            if not any(value in (one[:_SHOWN] for one in where.get(column, ())) for where in own):
                yield (
                    f"{', '.join(names)}: {count:,} rows with {column}={value} are in none of them; add the value to"
                    " where of one, or another collection"
                )

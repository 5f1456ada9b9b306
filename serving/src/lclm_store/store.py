"""The store: vectors by content address, least recently used ones dropped first, damage found by checksum."""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from lclm_store.codes import CODES, pack, unpack
from lclm_store.database import Database, Row, marks
from lclm_store.documents import Document
from lclm_store.errors import StoreError
from lclm_store.exchange import read_entries, write_entries

log = logging.getLogger(__name__)

KEYS_AT_ONCE = 500
"""Keys of one query."""
TOUCHES_AT_ONCE = 1000
"""Reads that are remembered before the order of use is written."""
FULL_SHARE = 0.9
"""A store above ``max_bytes`` is emptied to this share of it, so that not every write has to drop something."""

Item = TypeVar("Item")


@dataclass
class Statistics:
    """What a store holds, and what this connection has done; ``bytes`` counts vectors, without SQLite's overhead."""

    entries: int = 0
    bytes: int = 0
    documents: int = 0
    hits: int = 0
    misses: int = 0
    """Keys that were asked for and not given, whatever the reason: damaged and expired ones are among them."""
    damaged: int = 0
    """Entries whose checksum or size was wrong."""
    expired: int = 0
    failed_reads: int = 0
    """Queries that SQLite could not answer."""
    failed_writes: int = 0
    """Writes that were lost: the disk was full, the store read-only, damaged, or busy for too long."""
    dropped: int = 0
    """Entries removed because the store was full or they were too old."""


class LatentStore:
    """Vectors of windows by key, and records of documents, in one SQLite file.

    Any number of processes may use one file at once. Reading and writing vectors never raises for what happens to the
    file: a vector that cannot be read is a miss, one that cannot be written is counted and lost.

    Args:
        path: the file; made if it is not there.
        max_bytes: vectors beyond this many bytes are dropped, least recently used first; None: no limit.
        ttl_seconds: older vectors count as misses, and ``gc`` removes them; None: they stay.
        read_only: nothing is written.

    Raises:
        StoreError: the path holds something else, or cannot be opened; a limit below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int | None = None,
        ttl_seconds: float | None = None,
        read_only: bool = False,
    ):
        for name, value in (("max_bytes", max_bytes), ("ttl_seconds", ttl_seconds)):
            if value is not None and value <= 0:
                raise StoreError(f"{name}={value} must be above 0; leave it out for a store without that limit")
        self.path, self.max_bytes, self.ttl_seconds = Path(path), max_bytes, ttl_seconds
        self._database = Database(self.path, read_only)
        self.counts = Statistics()
        """What this connection has done so far; ``stat`` adds what the store holds."""
        self._touched: dict[str, float] = {}
        self._warned = False

    @property
    def read_only(self) -> bool:
        """Whether nothing is written."""
        return self._database.read_only

    def get_many(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """The vectors of each key, float32 [rows, width]; None for a miss."""
        found: dict[str, np.ndarray] = {}
        bad: list[str] = []
        oldest = self._oldest()
        for key, code, rows, width, checksum, created, data in self._rows_of(dict.fromkeys(keys)):
            array = _checked(key, code, rows, width, checksum, data)
            if array is None:
                bad.append(key)
                self.counts.damaged += 1
            elif created < oldest:
                self.counts.expired += 1
            else:
                found[key] = array
        if bad:
            log.warning("%s: %d damaged entries are left out, the first is %s", self.path, len(bad), bad[0])
            self._delete(bad)
        self._touch(found)
        hits = sum(key in found for key in keys)
        self.counts.hits += hits
        self.counts.misses += len(keys) - hits
        return [found.get(key) for key in keys]

    def put_many(self, items: Iterable[tuple[str, np.ndarray]], code: str = "bfloat16") -> int:
        """Keep vectors, [rows, width] of finite floats, in place of what their keys have; returns how many were kept.

        Raises ``StoreError`` for vectors or a code that no store can keep.
        """
        if code not in CODES:
            raise StoreError(f"code={code!r} is unknown; use one of {', '.join(CODES)}")
        kept = 0
        for part in _parts(items, KEYS_AT_ONCE):
            now = time.time()
            rows = []
            for key, array in part:
                data = pack(array, code)
                shape = (array.shape[0], array.shape[1])
                rows.append((key, code, *shape, _checksum(key, code, *shape, data), now, now, len(data), data))
            kept += len(rows) if self._insert(rows) else 0
        return kept

    def contains_many(self, keys: Sequence[str]) -> list[bool]:
        """Whether each key has an entry; damage is only found by reading it."""
        there: set[str] = set()
        for part in _parts(dict.fromkeys(keys), KEYS_AT_ONCE):
            statement = f"SELECT key FROM latents WHERE created >= ? AND key IN ({marks(part)})"
            there.update(key for (key,) in self._query(statement, [self._oldest(), *part]) or ())
        return [key in there for key in keys]

    def stat(self) -> Statistics:
        """What the store holds now, and what this connection has done so far."""
        values = {field.name: getattr(self.counts, field.name) for field in fields(Statistics)}
        totals = self._query("SELECT entries, bytes FROM totals")
        documents = self._query("SELECT COUNT(*) FROM documents")
        if totals:
            values["entries"], values["bytes"] = totals[0]
        if documents:
            values["documents"] = documents[0][0]
        return Statistics(**values)

    def gc(self, compact: bool = False) -> int:
        """Remove entries that are too old or beyond ``max_bytes``; returns how many.

        ``compact``: give the freed space back to the file system as well, which copies the whole file. Raises
        ``StoreError`` if the file cannot be written.
        """
        self._flush()
        removed = 0
        try:
            with self._database.writing() as connection:
                if self.ttl_seconds is not None:
                    removed += connection.execute("DELETE FROM latents WHERE created < ?", [self._oldest()]).rowcount
                if self.max_bytes is not None:
                    removed += _drop(connection, self.max_bytes, self.max_bytes)
            self.counts.dropped += removed
            if compact:
                self._database.rows("VACUUM")
            self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreError(f"cannot clean the store {self.path}: {error}; see that it can be written") from None
        return removed

    def verify(self, remove: bool = True) -> list[str]:
        """Keys of all entries that are damaged, which are removed unless ``remove`` is False or the store read-only.

        Raises ``StoreError`` if the file itself is damaged.
        """
        bad = []
        try:
            for key, code, rows, width, checksum, _, data in self._all_rows():
                if _checked(key, code, rows, width, checksum, data) is None:
                    bad.append(key)
            problems = [line for (line,) in self._database.rows("PRAGMA integrity_check(3)") if line != "ok"]
        except sqlite3.DatabaseError as error:
            problems = [str(error)]
        if problems:
            raise StoreError(f"the file {self.path} is damaged ({problems[0]}); delete it, and it is filled again")
        if remove and not self.read_only:
            self._delete(bad)
        return bad

    def export(self, path: str | Path, keys: Sequence[str] | None = None) -> int:
        """Write entries to a safetensors file, all of them or those of ``keys``; returns how many.

        Damaged entries are left out. Vectors keep their code, so that another store gets the same bytes.
        """
        rows = self._all_rows() if keys is None else self._rows_of(dict.fromkeys(keys))
        sound = (
            (key, code, count, width, data)
            for key, code, count, width, checksum, _, data in rows
            if _checked(key, code, count, width, checksum, data) is not None
        )
        return write_entries(Path(path), sound)

    def import_(self, path: str | Path) -> int:
        """Take over the entries of a file that ``export`` wrote; returns how many.

        Raises ``StoreError`` if the file is not of ``export``, or a vector of it is no such vector.
        """
        kept = 0
        for part in _parts(read_entries(Path(path)), KEYS_AT_ONCE):
            now = time.time()
            rows = [
                (key, code, count, width, _checksum(key, code, count, width, data), now, now, len(data), data)
                for key, code, count, width, data in part
            ]
            kept += len(rows) if self._insert(rows) else 0
        return kept

    def put_document(self, document: Document) -> None:
        """Keep the record of a document in place of the one it had; raises ``StoreError`` if that fails."""
        row = (document.digest, document.space, document.title, time.time(), document.json())
        try:
            with self._database.writing() as connection:
                connection.execute("INSERT OR REPLACE INTO documents VALUES(?,?,?,?,?)", row)
        except sqlite3.Error as error:
            raise StoreError(f"cannot write the store {self.path}: {error}; see that it can be written") from None

    def document(self, digest: str, space: str) -> Document | None:
        """The record of one text (see ``text_digest``) as one encoder read it."""
        rows = self._query("SELECT title, body FROM documents WHERE digest = ? AND space = ?", [digest, space])
        return _document(digest, space, *rows[0]) if rows else None

    def documents(self, space: str | None = None) -> Iterator[Document]:
        """All documents, oldest first, or those that one encoder read."""
        wanted, values = ("", []) if space is None else (" WHERE space = ?", [space])
        statement = f"SELECT digest, space, title, body FROM documents{wanted} ORDER BY added, digest"
        for row in self._query(statement, values) or ():
            document = _document(*row)
            if document is not None:
                yield document

    def close(self) -> None:
        """Write what was used last, and close the file."""
        self._flush()
        self._database.close()

    def __enter__(self) -> "LatentStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _oldest(self) -> float:
        return 0.0 if self.ttl_seconds is None else time.time() - self.ttl_seconds

    def _rows_of(self, keys: Iterable[str]) -> Iterator[Row]:
        columns = "SELECT key, code, rows, width, sum, created, data FROM latents WHERE key"
        for part in _parts(keys, KEYS_AT_ONCE):
            rows = self._query(f"{columns} IN ({marks(part)})", part)
            if rows is None:  # a damaged page: what lies elsewhere can still be read
                rows = [row for key in part for row in self._query(f"{columns} = ?", [key]) or ()]
            yield from rows

    def _all_rows(self) -> Iterator[Row]:
        """Every entry; raises ``sqlite3.Error``."""
        last = ""
        while rows := self._database.rows(
            "SELECT key, code, rows, width, sum, created, data FROM latents WHERE key > ? ORDER BY key LIMIT 500",
            [last],
        ):
            yield from rows
            last = rows[-1][0]

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[Row] | None:
        """What a query gives; None, and a note of it, if SQLite cannot answer."""
        try:
            return self._database.rows(statement, values)
        except sqlite3.Error as error:
            self.counts.failed_reads += 1
            self._warn("read", error)
            return None

    def _insert(self, rows: list[Row]) -> bool:
        if self.read_only:
            self.counts.failed_writes += len(rows)
            return False
        if not self.path.exists():
            self._database.revive()
        try:
            self._write(rows)
        except sqlite3.Error as error:
            self.counts.failed_writes += len(rows)
            self._warn("write", error)
            self._database.revive()
            return False
        return True

    def _write(self, rows: list[Row]) -> None:
        touched, self._touched = self._touched, {}
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT INTO latents VALUES(?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET code = excluded.code,"
                " rows = excluded.rows, width = excluded.width, sum = excluded.sum, created = excluded.created,"
                " used = excluded.used, size = excluded.size, data = excluded.data",
                rows,
            )
            connection.executemany(
                "UPDATE latents SET used = ? WHERE key = ?", [(t, key) for key, t in touched.items()]
            )
            if self.max_bytes is not None:
                self.counts.dropped += _drop(connection, self.max_bytes, int(self.max_bytes * FULL_SHARE))

    def _touch(self, keys: Iterable[str]) -> None:
        if self.read_only:
            return
        now = time.time()
        self._touched.update((key, now) for key in keys)
        if len(self._touched) >= TOUCHES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._touched and not self.read_only:
            try:
                self._write([])
            except sqlite3.Error as error:
                self._warn("write", error)

    def _delete(self, keys: Sequence[str]) -> None:
        if self.read_only or not keys:
            return
        try:
            with self._database.writing() as connection:
                connection.executemany("DELETE FROM latents WHERE key = ?", [(key,) for key in keys])
        except sqlite3.Error as error:
            self._warn("write", error)

    def _warn(self, what: str, error: sqlite3.Error) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "cannot %s the store %s (%s); windows are encoded instead", what, self.path, error)


def _checksum(key: str, code: str, rows: int, width: int, data: bytes) -> bytes:
    digest = hashlib.blake2b(f"{key} {code} {rows} {width}\n".encode(), digest_size=16)
    digest.update(data)
    return digest.digest()


def _checked(key: str, code: str, rows: int, width: int, checksum: bytes, data: bytes) -> np.ndarray | None:
    """The vectors of a row; None if anything of it is not what was written."""
    kinds = (str, str, int, int, bytes, bytes)
    if not all(map(isinstance, (key, code, rows, width, checksum, data), kinds)):
        return None
    if _checksum(key, code, rows, width, data) != checksum:
        return None
    return unpack(data, code, rows, width)


def _drop(connection: sqlite3.Connection, limit: int, target: int) -> int:
    """Remove least recently used entries until at most ``target`` bytes remain, if there are more than ``limit``."""
    (total,) = connection.execute("SELECT bytes FROM totals").fetchone()
    if total <= limit:
        return 0
    going = []
    for row, size in connection.execute("SELECT rowid, size FROM latents ORDER BY used, rowid"):
        if total <= target:
            break
        going.append((row,))
        total -= size
    connection.executemany("DELETE FROM latents WHERE rowid = ?", going)
    return len(going)


def _document(digest: str, space: str, title: str, body: str) -> Document | None:
    try:
        return Document.from_row(digest, space, title, body)
    except (ValueError, KeyError, TypeError):
        return None


def _parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part

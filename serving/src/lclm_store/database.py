"""The SQLite file of a store: opened, its tables made, and every statement run under one lock."""

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from lclm_store.errors import StoreError

log = logging.getLogger(__name__)

FORMAT = 1
"""``PRAGMA user_version`` of the tables below."""
BUSY_SECONDS = 5.0
"""How long a writer waits for another process."""
REVIVE_SECONDS = 0.5
"""The same for a file that is opened again: a model waits for it."""

_TABLES = """
CREATE TABLE IF NOT EXISTS latents(
  key TEXT PRIMARY KEY, code TEXT NOT NULL, rows INT NOT NULL, width INT NOT NULL, sum BLOB NOT NULL,
  created REAL NOT NULL, used REAL NOT NULL, size INT NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS latents_used ON latents(used, size);
CREATE INDEX IF NOT EXISTS latents_created ON latents(created);
CREATE TABLE IF NOT EXISTS documents(
  digest TEXT NOT NULL, space TEXT NOT NULL, title TEXT NOT NULL, added REAL NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY(digest, space));
CREATE TABLE IF NOT EXISTS totals(one INT PRIMARY KEY CHECK(one = 1), entries INT NOT NULL, bytes INT NOT NULL);
INSERT OR IGNORE INTO totals VALUES(1, 0, 0);
CREATE TRIGGER IF NOT EXISTS latents_in AFTER INSERT ON latents BEGIN
  UPDATE totals SET entries = entries + 1, bytes = bytes + new.size; END;
CREATE TRIGGER IF NOT EXISTS latents_out AFTER DELETE ON latents BEGIN
  UPDATE totals SET entries = entries - 1, bytes = bytes - old.size; END;
CREATE TRIGGER IF NOT EXISTS latents_change AFTER UPDATE OF size ON latents BEGIN
  UPDATE totals SET bytes = bytes + new.size - old.size; END;
"""

Row = tuple


class Database:
    """One connection, used by one thread at a time.

    Args:
        path: the file; it is made unless ``read_only``.
        read_only: nothing is ever written, not even to find out what was used last.

    Raises:
        StoreError: the file is no store, or cannot be opened.
    """

    def __init__(self, path: Path, read_only: bool):
        self.path, self.read_only = path, read_only
        self._lock = threading.Lock()
        if read_only and not path.is_file():
            raise StoreError(f"there is no store {path}; fill one first, or open it to be written")
        if not read_only and not path.parent.is_dir():
            raise StoreError(f"there is no folder {path.parent} for the store {path.name}; make it first")
        try:
            self._connection = self._open()
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the store {path}: {error}; delete it if it is damaged") from None

    def _open(self, seconds: float | None = None) -> sqlite3.Connection:
        if not self.read_only:
            connection = self._connect("rwc", seconds)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection
        try:
            connection = self._connect("ro")
            self._check_format(connection)
        except sqlite3.OperationalError:
            # Without its side files, in a folder that cannot be written: nobody else writes there either.
            connection = self._connect("ro&immutable=1")
            self._check_format(connection)
        return connection

    def _connect(self, mode: str, seconds: float | None = None) -> sqlite3.Connection:
        address = f"file:{quote(str(self.path.absolute()))}?mode={mode}"
        timeout = BUSY_SECONDS if seconds is None else seconds
        return sqlite3.connect(address, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = self._check_format(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        if version == 0:
            # One transaction: several processes may make the store at once.
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={FORMAT}; COMMIT;")

    def _check_format(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version not in (0, FORMAT) or (version == 0 and tables - {"latents", "documents", "totals"}):
            raise StoreError(f"{self.path} is an SQLite file but no store of format {FORMAT}; name another file")
        if self.read_only and version == 0:
            raise StoreError(f"{self.path} holds no store yet; fill it first, or open it to be written")
        return version

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """What a query gives; raises ``sqlite3.Error``."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is written or, on any error, nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def revive(self) -> None:
        """Make the tables again if the file was emptied or removed under this connection."""
        if self.read_only:
            return
        with self._lock:
            try:
                self._connection.close()  # first: what it holds of the old file is in the way
                self._connection = self._open(REVIVE_SECONDS)
                self._connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
            except (sqlite3.Error, StoreError) as error:
                log.debug("%s cannot be opened again: %s", self.path, error)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def marks(values: Iterable[object]) -> str:
    """``?,?,?`` for so many values."""
    return ",".join("?" for _ in values)

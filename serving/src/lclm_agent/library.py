"""Documents with their texts, in the file of a store of latents: listed, searched by words, read segment by segment.

The store itself keeps what an encoder made of windows, and which windows a document has; an agent also needs the text.
It lies beside them in tables of its own, which the store leaves alone, so one file holds both.
"""

import re
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lclm_agent.errors import AgentError
from lclm_agent.segments import WORDS, Segment, cut, find, number_segments
from lclm_store import LatentStore, StoreError, text_digest

_TABLES = """
CREATE TABLE IF NOT EXISTS agent_texts(digest TEXT PRIMARY KEY, title TEXT NOT NULL, added REAL NOT NULL,
  words INT NOT NULL, text TEXT NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS agent_words USING fts5(digest UNINDEXED, segment UNINDEXED, text);
"""
_SHORTEST_NAME = 8
"""Characters of a digest that name a document."""
MAX_CHARACTERS = 20_000_000


class Entry(NamedTuple):
    """A document."""

    id: str
    """How it is named: the beginning of its text's SHA-256."""
    title: str
    segments: int
    characters: int


class Hit(NamedTuple):
    """A segment that holds words of a query."""

    document: str
    title: str
    segment: str
    excerpt: str


class Library:
    """Texts in a store's file.

    Args:
        path: the file; it is made if it is not there.

    Raises:
        AgentError: the file is no store, or cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with LatentStore(path):  # makes the file, and refuses one that is no store
                pass
            self._connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            self._connection.executescript(_TABLES)
        except (StoreError, sqlite3.Error) as error:
            raise AgentError(f"cannot open the library {path}: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, title: str, text: str, words: int = WORDS) -> Entry:
        """Keep a text; one that is there already gets the new title. Raises ``AgentError`` for one that is empty."""
        if len(text) > MAX_CHARACTERS:
            raise AgentError(f"the document has {len(text):,} characters, above {MAX_CHARACTERS:,}; split it")
        segments, digest = number_segments(cut(text, words)), text_digest(text)
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("DELETE FROM agent_words WHERE digest = ?", [digest])
                row = (digest, title, time.time(), words, text)
                self._connection.execute("INSERT OR REPLACE INTO agent_texts VALUES(?,?,?,?,?)", row)
                rows = ((digest, one.id, one.text) for one in segments)
                self._connection.executemany("INSERT INTO agent_words VALUES(?,?,?)", rows)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise AgentError(f"cannot write the library {self.path}: {error}") from None
        return Entry(digest[:_SHORTEST_NAME], title, len(segments), len(text))

    def add_stored(self, words: int = WORDS) -> int:
        """Take the texts of documents that ``lclm store add`` put into the file, as far as their files are unchanged.

        Returns how many were taken.
        """
        taken = 0
        with LatentStore(self.path) as store:
            for document in store.documents():
                path = Path(document.title)
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                if text_digest(text) == document.digest:
                    self.add(path.name, text, words)
                    taken += 1
        return taken

    def entries(self) -> list[Entry]:
        """All documents, oldest first."""
        rows = self._connection.execute(
            "SELECT digest, title, length(text), (SELECT COUNT(*) FROM agent_words w WHERE w.digest = t.digest)"
            " FROM agent_texts t ORDER BY added, digest"
        )
        return [Entry(digest[:_SHORTEST_NAME], title, count, length) for digest, title, length, count in rows]

    def segments(self, document: str) -> tuple[Segment, ...]:
        """The segments of a document, named by its id or its title; raises ``AgentError`` if it is none or several."""
        named = self._connection.execute(
            "SELECT title, words, text FROM agent_texts WHERE title = ?1 OR (length(?1) >= ?2 AND"
            " substr(digest, 1, length(?1)) = ?1)",
            [document, _SHORTEST_NAME],
        ).fetchall()
        if len(named) != 1:
            raise AgentError(f"{len(named)} documents are called {document[:80]!r}; give an id of list_documents")
        ((title, words, text),) = named
        return number_segments((title, piece) for piece in cut(text, words))

    def segment(self, document: str, segment_id: str) -> Segment:
        """One segment; raises ``AgentError`` if there is none."""
        segments = self.segments(document)
        found = find(segments, segment_id)
        if found is None:
            raise AgentError(f"{document} has no segment {segment_id[:80]!r}; it has seg_1 to {segments[-1].id}")
        return found

    def search(self, query: str, limit: int = 5) -> list[Hit]:
        """Segments that hold words of ``query``, the best first (BM25)."""
        words = re.findall(r"\w+", query)
        if not words:
            raise AgentError("the query has no word; write some")
        asked = " OR ".join(f'"{word}"' for word in dict.fromkeys(words[:64]))
        rows: Iterable[tuple[str, str, str, str]] = self._connection.execute(
            "SELECT w.digest, t.title, w.segment, snippet(agent_words, 2, '', '', ' ... ', 24) FROM agent_words w"
            " JOIN agent_texts t ON t.digest = w.digest WHERE agent_words MATCH ? ORDER BY rank LIMIT ?",
            [asked, max(1, min(limit, 50))],
        )
        return [Hit(digest[:_SHORTEST_NAME], *rest) for digest, *rest in rows]

"""Text files as documents of a store: encoded once, known by their content, found again by their vectors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lclm_jax.data.packing.windows import plan_spans
from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.stored_windows import StoredWindows, store_errors

Progress = Callable[[str, int, int], None]
"""Told of (what is counted, how many are done, how many there are)."""


class Hit(NamedTuple):
    """A window that is like a query."""

    score: float
    """Cosine of the angle between the means of their vectors, less the mean over the store."""
    title: str
    start: int
    """First character of the window in its document."""
    stop: int


class _Read(NamedTuple):
    """A document that is not in the store."""

    path: Path
    digest: str
    ids: np.ndarray
    keys: list[str]
    places: list[tuple[int, int]]


def text_files(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths`` and below the folders among them, sorted; hidden ones are left out.

    Raises ``LclmError`` for a path that does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise LclmError(f"there is no {path}; name files or folders of text")
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        hidden = [any(part.startswith(".") for part in file.relative_to(path).parts) for file in below]
        found += [file for file, is_hidden in zip(below, hidden, strict=True) if file.is_file() and not is_hidden]
    return list(dict.fromkeys(found))


def add_documents(generator: Generator, paths: Sequence[Path], progress: Progress | None = None) -> dict[str, int]:
    """Encode text files into the generator's store.

    Args:
        generator: with a store.
        paths: see ``text_files``.
        progress: told of files read.

    Returns:
        Counts: ``documents``, ``new`` ones, files ``skipped`` because they are no text, ``windows``, ``encoded`` ones.
    """
    stored, files = _store_of(generator), text_files(paths)
    counts = dict.fromkeys(("documents", "new", "skipped", "windows", "encoded"), 0)
    waiting: dict[str, _Read] = {}

    def encoded(windows: int) -> None:
        counts["encoded"] += windows

    def flush() -> None:
        generator.encoder.pooled([one.ids for one in waiting.values()], encoded)
        for one in waiting.values():
            _record(stored, one)
        waiting.clear()

    for number, path in enumerate(files, 1):
        text = _text(path)
        if text is None:
            counts["skipped"] += 1
        else:
            counts["documents"] += 1
            read, windows = _read(generator, stored, path, text)
            counts["windows"] += windows
            if read is not None and read.digest not in waiting:
                counts["new"] += 1
                waiting[read.digest] = read
        if sum(len(one.keys) for one in waiting.values()) >= generator.encoder.batch_windows:
            flush()
        if progress is not None:
            progress("files read", number, len(files))
    flush()
    return counts


class DocumentIndex:
    """The windows of the documents in a generator's store, to be searched; read once.

    Windows are compared by the means of their vectors, all of them with the query's. The mean over all windows is taken
    off first: vectors of one encoder share a large part.

    Args:
        generator: with a store.
    """

    def __init__(self, generator: Generator):
        stored = _store_of(generator)
        self._generator = generator
        self._places: list[tuple[str, int, int]] = []
        means = []
        for document in stored.store.documents(stored.space):
            for place, vectors in zip(document.places, stored.get(document.keys), strict=True):
                if vectors is not None:
                    self._places.append((document.title, *place))
                    means.append(vectors.mean(0))
        table_WE = np.stack(means) if means else np.zeros((0, generator.model.latent_size), np.float32)
        self._centre_E = table_WE.mean(0) if means else np.zeros(table_WE.shape[1], np.float32)
        self._table_WE = _unit(table_WE - self._centre_E)

    def __len__(self) -> int:
        return len(self._places)

    def search(self, query: str, limit: int = 5) -> list[Hit]:
        """Windows whose vectors are most like those of ``query``, best first; raises ``LclmError`` for an empty one."""
        ids = self._generator.encoder_tokenizer.encode(query)
        if not len(ids):
            raise LclmError("the query has no token; write some text")
        wanted_E = np.asarray(self._generator.encoder.pooled([ids])[0], np.float32).mean(0)
        scores_W = self._table_WE @ _unit(wanted_E - self._centre_E)
        best = np.argsort(-scores_W, kind="stable")[:limit]
        return [Hit(float(scores_W[index]), *self._places[index]) for index in best]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` [..., E] of length 1; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _store_of(generator: Generator) -> StoredWindows:
    if generator.encoder.store is None:
        raise LclmError("the generator has no store; open it with one")
    return generator.encoder.store


def _text(path: Path) -> str | None:
    """The text of a file; None if it is empty or no UTF-8 text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.strip() and "\0" not in text else None


def _read(generator: Generator, stored: StoredWindows, path: Path, text: str) -> tuple[_Read | None, int]:
    """The document if it is to be encoded, and how many windows it has."""
    from lclm_store import text_digest

    digest = text_digest(text)
    known = stored.store.document(digest, stored.space)
    if known is not None and all(stored.store.contains_many(known.keys)):
        return None, len(known.keys)
    ids, starts, stops = generator.encoder_tokenizer.encode_with_offsets(text)
    table = plan_spans([len(ids)], generator.model)
    windows = list(zip(table.left, table.right, table.context, table.start, table.stop, strict=True))
    keys = stored.keys([(ids[left:right], skip, stop - start) for left, right, skip, start, stop in windows])
    places = [(int(starts[start]), int(stops[stop - 1])) for *_, start, stop in windows]
    return _Read(path, digest, ids, keys, places), len(keys)


def _record(stored: StoredWindows, read: _Read) -> None:
    from lclm_store import Document

    made = Document(read.digest, stored.space, str(read.path), tuple(read.keys), tuple(read.places))
    with store_errors():
        stored.store.put_document(made)

"""Raw text by file: what Python itself carries, or a folder; split by a hash of each file's name."""

import hashlib
import importlib
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lclm_jax.config import CorpusConfig

SPLITS = ("train", "validation", "held_out")
"""train: training and tokenizer training; validation: to tune on; held_out: only the final evaluation reads it."""

# Tests and what is installed beside the library; encodings: machine-made tables; pydoc_data: read as topics instead.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idle_test",
    "idlelib",
    "lib-dynload",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
# Files and folders that differ between machines with the same Python.
_LOCAL_PREFIXES = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")


class Document(NamedTuple):
    """One text of the corpus, in Unicode's form C, without blank lines before it."""

    id: str
    text: str
    split: str


class Entry(NamedTuple):
    """A place in the corpus, before it is read."""

    id: str
    """Name relative to the corpus, with forward slashes."""
    split: str
    size: int
    """Bytes that will be read."""
    path: Path | None
    """None: a topic of Python's manual."""


def split_of(name: str, config: CorpusConfig) -> str:
    """The split of a file, by the SHA-256 of its relative name alone: it never depends on the other files."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < config.held_out_share:
        return "held_out"
    return "validation" if share < config.held_out_share + config.validation_share else "train"


def list_corpus(config: CorpusConfig) -> list[Entry]:
    """Every entry of the corpus in the order of names; with ``max_bytes``, a sample by hash that fits in it.

    Raises:
        ValueError: the folder is missing or holds no file to read.
    """
    found = _python_entries(config) if config.kind == "python_stdlib" else _folder_entries(config)
    entries = sorted(found, key=lambda entry: entry.id)
    if config.max_bytes is not None:
        entries = _sample(entries, config.max_bytes)
    if not entries:
        raise ValueError(
            f"the corpus is empty (corpus.kind={config.kind}, path={config.path}, suffixes={list(config.suffixes)},"
            f" max_bytes={config.max_bytes}); name a folder with such files"
        )
    return entries


def read_entry(entry: Entry, config: CorpusConfig, counts: Counter[str] | None = None) -> Document | None:
    """The document at ``entry``, or None if it is unreadable, not UTF-8 or empty.

    ``counts`` gains one by reason: ``unreadable``, ``undecodable``, ``empty``; ``cut`` counts files longer than
    ``max_file_bytes``, which are kept up to the last whole line before it.
    """
    counts = Counter() if counts is None else counts
    try:
        raw = _topics()[entry.id].encode() if entry.path is None else entry.path.read_bytes()
    except OSError:
        counts["unreadable"] += 1
        return None
    if len(raw) > config.max_file_bytes:
        counts["cut"] += 1
        raw = raw[: config.max_file_bytes]
        raw = raw[: raw.rfind(b"\n") + 1] or _whole_characters(raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        counts["undecodable"] += 1
        return None
    text = _without_blank_start(unicodedata.normalize("NFC", text))
    if not text:
        counts["empty"] += 1
        return None
    return Document(entry.id, text, entry.split)


def read_corpus(
    config: CorpusConfig, splits: Iterable[str] = SPLITS, counts: Counter[str] | None = None
) -> Iterator[Document]:
    """Documents of ``splits`` in the order of names; what cannot be used is counted by reason in ``counts``.

    Raises:
        ValueError: as ``list_corpus``.
    """
    wanted = set(splits)
    for entry in list_corpus(config):
        if entry.split in wanted and (document := read_entry(entry, config, counts)) is not None:
            yield document


def _python_entries(config: CorpusConfig) -> Iterator[Entry]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not any(part.startswith(_LOCAL_PREFIXES) for part in parts):
            yield _file_entry(path, "/".join(("stdlib", *parts)), config)
    for name, text in _topics().items():
        yield Entry(name, split_of(name, config), len(text.encode()), None)


def _topics() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return {f"topics/{name}": text for name, text in topics.items()}


def _folder_entries(config: CorpusConfig) -> Iterator[Entry]:
    root = Path(config.path or "")
    if not root.is_dir():
        raise ValueError(f"corpus.path={config.path} is not a folder; name an existing folder of text files")
    for path in root.rglob("*"):
        if path.suffix in config.suffixes and path.is_file():
            yield _file_entry(path, path.relative_to(root).as_posix(), config)


def _file_entry(path: Path, name: str, config: CorpusConfig) -> Entry:
    try:
        size = min(path.stat().st_size, config.max_file_bytes)
    except OSError:
        size = 0  # reading it will be counted as unreadable
    return Entry(name, split_of(name, config), size, path)


def _sample(entries: list[Entry], budget: int) -> list[Entry]:
    """As many entries as fit, taken in the order of their hashes: a fair sample that stays the same."""
    kept = set()
    for entry in sorted(entries, key=lambda entry: hashlib.sha256(b"sample:" + entry.id.encode()).digest()):
        if entry.size > budget:
            break
        budget -= entry.size
        kept.add(entry.id)
    return [entry for entry in entries if entry.id in kept]


def _whole_characters(raw: bytes) -> bytes:
    """``raw`` without the beginning of a character that was cut in two."""
    for back in range(1, min(4, len(raw)) + 1):
        if raw[-back] & 0xC0 != 0x80:  # not a continuation byte: the last character starts here
            width = 1 + (raw[-back] >= 0xC0) + (raw[-back] >= 0xE0) + (raw[-back] >= 0xF0)
            return raw if width == back else raw[:-back]
    return raw


def _without_blank_start(text: str) -> str:
    """Drop blank lines before the first line (its indentation stays); empty if nothing else is there."""
    body = text.lstrip()
    if not body:
        return ""
    start = len(text) - len(body)
    return text[text.rfind("\n", 0, start) + 1 :]

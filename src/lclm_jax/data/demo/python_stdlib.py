"""Real English and code without a download: the standard library's sources and the manual's topics."""

import importlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

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


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per source file and per topic, in the order of names."""
    longest = collection.max_document_bytes or 2**62
    root = Path(sysconfig.get_path("stdlib"))
    entries = [Entry(name, len(topic.encode()), "") for name, topic in _topics().items()]
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not any(part.startswith(_LOCAL_PREFIXES) for part in parts):
            entries.append(Entry("/".join(("stdlib", *parts)), min(_size(path), longest), str(path)))
    return sorted(entries, key=lambda entry: entry.id)


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A source file, up to one byte more than a document may have, or a topic of the manual."""
    longest = collection.max_document_bytes
    if not entry.path:
        content = _topics()[entry.id].encode()
    else:
        try:
            with Path(entry.path).open("rb") as file:
                content = file.read() if longest is None else file.read(longest + 1)
        except OSError as error:
            yield Bad(entry.id, "unreadable", str(error))
            return
    yield Row(entry.id, {collection.columns.text: content})


def _topics() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return {f"topics/{name}": topic for name, topic in topics.items()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will be counted as unreadable

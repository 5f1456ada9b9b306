"""Raw files by path, folder, pattern or URL: listed in the order of their names, opened where they are."""

import functools
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, cast

from lclm_jax.config import CollectionConfig
from lclm_jax.data.prepare.readers.local_files import WILDCARDS, Found, has_ending, local_files, same_file, text_of
from lclm_jax.data.store.storage import driver_errors, file_system
from lclm_jax.errors import LclmError
from lclm_jax.types import ReadOnlyJson

logger = logging.getLogger(__name__)

_PIECE = 2**20
_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class File(NamedTuple):
    """A raw file."""

    path: str
    """Local path or URL."""
    name: str
    """Relative to the folder that was named, with forward slashes; what is not UTF-8 is escaped."""
    size: int
    version: str = ""
    """Text that differs when the file does: size and times of a local file, etag or the like of a remote one."""


def list_files(collection: CollectionConfig) -> list[File]:
    """The files of ``collection.paths`` in the order of their names; a file that several paths name is there once.

    Files of one name from several folders are told apart by as many of the folders above them as that takes.

    Raises:
        LclmError: a path names nothing.
    """
    found: dict[str, File] = {}
    for path in collection.paths:
        for file in _expand(path, collection.endings):
            found.setdefault(file.path if "://" in file.path else same_file(file.path), file)
    return sorted(_told_apart(list(found.values())), key=lambda file: file.name)


def open_file(path: str) -> BinaryIO:
    """A binary file object that can seek; raises ``OSError``, also for what is no file and might never end."""
    if "://" not in path:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            os.listdir(path)  # raises if the folder cannot be listed, which is why it is read
        if kind := next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), None):
            raise OSError(f"it is {kind}; name a regular file")
        return open(path, "rb")
    system, inside = file_system(path)
    return cast(BinaryIO, system.open(inside, "rb"))


def read_head(path: str, size: int) -> bytes:
    """The first ``size`` bytes of a file; raises ``OSError``."""
    if "://" in path:
        with driver_errors():
            system, inside = file_system(path)
            return cast(bytes, system.cat_file(inside, start=0, end=size))
    with open_file(path) as file:
        return file.read(size)


def file_bytes(path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file, or of a range of it, in pieces; raises ``OSError``."""
    with open_file(path) as file:
        file.seek(start)
        left = 2**63 if stop is None else stop - start
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            yield piece
            left -= len(piece)


def local_version(path: str) -> str:
    """``File.version`` of a local file; empty if there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}"


def wanted_columns(collection: CollectionConfig) -> list[str]:
    """Columns that ``collection`` may read; rows need not have all."""
    names = collection.columns
    if collection.records == "documents":
        wanted = [names.text]
    else:
        wanted = [names.messages, names.tools, names.prompt, names.target]
        wanted += [names.context, names.question, names.answer, *([names.system] if names.system else [])]
    return [*wanted, *(name for name in (names.id, names.language) if name), *collection.where]


def _expand(path: str, endings: tuple[str, ...]) -> Iterator[File]:
    path = path.removeprefix("file://")
    others: Counter[str] = Counter()
    try:
        with driver_errors():
            files = _local(path, endings, others) if "://" not in path else _remote(path, endings, others)
    except OSError as error:
        raise LclmError(f"cannot list {path}: {error}") from None
    shown = ", ".join(f"{ending or 'no ending'} ({count:,})" for ending, count in others.most_common(4))
    if not files:
        raise LclmError(f"{path} names no file to read (endings: {', '.join(endings)}); {_hint(path, shown)}")
    if others:
        _say(f"{path}: {others.total():,} files of other endings are not read: {shown}")
    yield from files


def _hint(path: str, others: str) -> str:
    """What to look at where ``path`` names no file of its endings; ``others``: the endings that are there."""
    if others:
        return f"its files end in {others}: set suffixes"
    if "$" in path or path.startswith("~"):
        return "a variable or user that is not known here stays as it is: write the path in full"
    if "{" in path or "," in path:
        return "braces and commas have no meaning: list the paths one by one"
    if set("[]") & set(path):
        return "brackets choose one character: write [[] for a bracket that is part of a name, or check the path"
    return "check the path and the endings"


@functools.cache
def _say(message: str) -> None:
    """Log once a process: a corpus is listed for its tokenizer, its survey and its preparation."""
    logger.info("%s", message)


def _local(path: str, endings: tuple[str, ...], others: Counter[str]) -> list[File]:
    files, hidden = [], []
    for found in local_files(path, endings):
        if not found.wanted:
            others[os.path.splitext(found.name)[1]] += 1
            continue
        files.append(_file(found))
        if any(part.startswith(".") for part in found.name.split("/")):
            hidden.append(found.name)
    if hidden:
        _say(f"{path}: {len(hidden):,} hidden files are read as well, the first is {hidden[0]}")
    return files


def _file(found: Found) -> File:
    version = local_version(found.path)
    return File(found.path, found.name, int(version.partition("-")[0] or 0), version)  # 0: reading it gives the reason


def _remote(url: str, endings: tuple[str, ...], others: Counter[str]) -> list[File]:
    system, inside = file_system(url)
    listed: dict[str, ReadOnlyJson] = {}
    if set(inside) & WILDCARDS and not system.isdir(inside):
        above = _plain_prefix(inside)
        for name, info in system.glob(inside, detail=True).items():
            listed |= (
                {name: info} if info["type"] == "file" else _below(system.find(name, detail=True), endings, others)
            )
    elif system.isfile(inside):
        listed, above = {inside: system.info(inside)}, inside.rpartition("/")[0]
    else:
        listed, above = _below(system.find(inside, detail=True), endings, others), inside
    above = above.rstrip("/") + "/"
    return [
        File(system.unstrip_protocol(name), text_of(name.removeprefix(above)), int(info["size"] or 0), _etag(info))
        for name, info in listed.items()
        if info["type"] == "file"
    ]


def _below(found: dict[str, ReadOnlyJson], endings: tuple[str, ...], others: Counter[str]) -> dict[str, ReadOnlyJson]:
    wanted = {name: info for name, info in found.items() if has_ending(name, endings)}
    others.update(os.path.splitext(name)[1] for name in found if name not in wanted)
    return wanted


_ETAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "crc32c")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


def _etag(info: ReadOnlyJson) -> str:
    """What a store says that changes with a file's content; else its time of change; else its size alone."""
    said = next((str(info[name]) for name in (*_ETAGS, *_TIMES) if info.get(name)), "")
    return f"{info['size']}-{said}"


def _plain_prefix(pattern: str) -> str:
    """The folder above the first part with a wildcard."""
    parts = pattern.split("/")
    return "/".join(parts[: next(i for i, part in enumerate(parts) if set(part) & WILDCARDS)])


def _told_apart(files: Sequence[File]) -> list[File]:
    """``files`` with names that differ: equal ones get the folders above in front, as many as it takes."""
    paths = [text_of(file.path if "://" in file.path else os.path.abspath(file.path)).split("/") for file in files]
    names = [file.name for file in files]
    while alike := {name for name, count in Counter(names).items() if count > 1}:
        longer = [
            "/".join(path[-(name.count("/") + 2) :]) if name in alike else name
            for name, path in zip(names, paths, strict=True)
        ]
        if longer == names:
            raise LclmError(f"two files of a collection have one name, {min(alike)!r}; make them two collections")
        names = longer
    return [file._replace(name=name) for file, name in zip(files, names, strict=True)]

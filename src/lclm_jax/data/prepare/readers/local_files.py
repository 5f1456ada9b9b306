"""Local files by path, folder or pattern: every folder is read once, also behind symbolic links."""

import os
import re
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from fsspec.utils import glob_translate

WILDCARDS = frozenset("*?[")


class Found(NamedTuple):
    """A file, or what stands in a folder like one."""

    path: str
    name: str
    """Relative to the folder that was named or that stands above the pattern, with forward slashes."""
    wanted: bool
    """Whether its ending is a wanted one, or a pattern or path names it."""


def local_files(path: str, endings: tuple[str, ...]) -> Iterator[Found]:
    """What ``path`` (a file, folder or pattern) names, with what is in folders but has other endings.

    A folder that cannot be listed is yielded itself, as reading it gives the reason.
    """
    given = path if os.path.lexists(path) else os.path.expandvars(os.path.expanduser(path))
    if os.path.isdir(given):
        yield from _in_folder(given, "", endings)
    elif os.path.lexists(given):
        yield Found(given, text_of(os.path.basename(given)), True)
    elif set(given) & WILDCARDS:
        yield from _matching(given, endings)


def text_of(path: str) -> str:
    """A file name as text, the same in every locale: bytes of it that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def has_ending(name: str, endings: tuple[str, ...]) -> bool:
    """Whether ``name`` has one of ``endings``, in capitals or not."""
    return name.endswith(endings) or name.lower().endswith(tuple(ending.lower() for ending in endings))


def _in_folder(folder: str, above: str, endings: tuple[str, ...]) -> Iterator[Found]:
    for relative, is_folder in _walk(folder, None):
        if not is_folder or relative.endswith("/"):
            name = text_of(above + relative)
            yield Found(os.path.join(folder, relative), name, relative.endswith("/") or has_ending(name, endings))


def _matching(pattern: str, endings: tuple[str, ...]) -> Iterator[Found]:
    """Files that ``pattern`` names, and files with ``endings`` in folders that it names."""
    root, rest = _literal_part(os.path.abspath(pattern))
    if not os.path.isdir(root):
        return
    expression = re.compile(glob_translate(rest))
    depth = None if "**" in rest else rest.count("/") + 1
    for relative, is_folder in _walk(root, depth):
        if expression.fullmatch(relative.rstrip("/")) is None:
            continue
        if is_folder and not relative.endswith("/"):
            if not rest.endswith("**"):  # else its files match themselves
                yield from _in_folder(os.path.join(root, relative), f"{relative}/", endings)
        else:
            yield Found(os.path.join(root, relative), text_of(relative), True)


def _literal_part(pattern: str) -> tuple[str, str]:
    """(folder above the first wildcard, rest of the pattern); a folder that exists is no pattern, brackets or not."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if set(part) & WILDCARDS)
    while first < len(parts) - 1 and (os.path.isdir("/".join(parts[: first + 1])) or not set(parts[first]) & WILDCARDS):
        first += 1
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _walk(root: str, depth: int | None) -> Iterator[tuple[str, bool]]:
    """(path below ``root``, is it a folder?) down to ``depth``; a folder that cannot be listed ends with a slash.

    Folders behind symbolic links come after all others, so that the name of a file does not depend on the order in
    which the system lists a folder; one that was read already is not read again, which ends every loop.
    """
    real: deque[tuple[str, int]] = deque([("", 0)])
    links: list[tuple[str, int]] = []
    seen: set[tuple[int, int]] = set()
    while real or links:
        if real:
            relative, level = real.popleft()
        else:
            links.sort(reverse=True)
            relative, level = links.pop()
        try:
            about = os.stat(os.path.join(root, relative))
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(os.path.join(root, relative)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            if not relative:
                raise
            yield f"{relative}/", True
            continue
        for entry in entries:
            name = f"{relative}/{entry.name}" if relative else entry.name
            is_folder = _is_folder(entry)
            yield name, is_folder
            if is_folder and (depth is None or level + 1 < depth):
                (links if entry.is_symlink() else real).append((name, level + 1))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: reading it as a file gives the reason
        return False


def same_file(path: str) -> str:
    """One text for all paths of a file: the folder's links are resolved, not the file's, as links are files as well."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(_resolved(folder), name)


@lru_cache(1024)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)

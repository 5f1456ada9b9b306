"""Files by path, folder, glob or URL: listed in the order of their names, opened where they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from lclm_jax.config import CollectionConfig
from lclm_jax.data.store.storage import driver_errors, file_system
from lclm_jax.errors import LclmError

_WILDCARDS = set("*?[")


class File(NamedTuple):
    """A raw file."""

    path: str
    """Local path or URL."""
    name: str
    """Relative to the folder that was named, with forward slashes."""
    size: int


def list_files(collection: CollectionConfig) -> list[File]:
    """The files of ``collection.paths`` in the order of their names.

    Raises:
        LclmError: a path names nothing, or two files have one name.
    """
    found: dict[str, File] = {}
    for path in collection.paths:
        for file in _expand(path, collection.endings):
            if file.name in found and found[file.name].path != file.path:
                raise LclmError(
                    f"{found[file.name].path} and {file.path} have one name in their collection, {file.name!r}; name"
                    " the folder above both, or make them two collections"
                )
            found[file.name] = file
    return sorted(found.values(), key=lambda file: file.name)


def open_file(path: str) -> BinaryIO:
    """A binary file object that can seek."""
    if "://" not in path:
        return open(path, "rb")
    system, inside = file_system(path)
    return cast(BinaryIO, system.open(inside, "rb"))


def _expand(path: str, endings: tuple[str, ...]) -> Iterator[File]:
    try:
        with driver_errors():
            files = _local(path, endings) if "://" not in path else _remote(path, endings)
    except OSError as error:
        raise LclmError(f"cannot list {path}: {error}") from None
    if not files:
        raise LclmError(f"{path} names no file to read (endings: {', '.join(endings)}); check the path and the endings")
    yield from files


def _local(path: str, endings: tuple[str, ...]) -> list[File]:
    root = Path(path)
    if root.is_file():
        return [_file(root, root.name)]
    if root.is_dir():
        names = [one for one in root.rglob("*") if one.name.endswith(endings) and (one.is_file() or one.is_symlink())]
        return [_file(one, one.relative_to(root).as_posix()) for one in names]
    system, pattern = file_system(path)
    above = Path(_plain_prefix(pattern))
    return [_file(Path(one), Path(one).relative_to(above).as_posix()) for one in system.glob(pattern)]


def _file(path: Path, name: str) -> File:
    try:
        return File(str(path), name, path.stat().st_size)
    except OSError:
        return File(str(path), name, 0)  # reading it will be counted as unreadable


def _remote(url: str, endings: tuple[str, ...]) -> list[File]:
    system, inside = file_system(url)
    if set(inside) & _WILDCARDS:
        found, above = system.glob(inside, detail=True), _plain_prefix(inside)
    elif system.isfile(inside):
        found, above = {inside: system.info(inside)}, inside.rpartition("/")[0]
    elif system.isdir(inside):
        listed = system.find(inside, detail=True)
        found, above = {name: info for name, info in listed.items() if name.endswith(endings)}, inside
    else:
        return []
    above = above.rstrip("/") + "/"
    return [
        File(system.unstrip_protocol(name), name.removeprefix(above), int(info["size"] or 0))
        for name, info in found.items()
        if info["type"] == "file"
    ]


def _plain_prefix(pattern: str) -> str:
    """The folder above the first part with a wildcard."""
    parts = pattern.split("/")
    first = next((i for i, part in enumerate(parts) if set(part) & _WILDCARDS), -1)
    return "/".join(parts[:first])


def wanted_columns(collection: CollectionConfig) -> list[str]:
    """Columns that ``collection`` may read; rows need not have all."""
    names = collection.columns
    if collection.records == "documents":
        wanted = [names.text]
    else:
        wanted = [names.messages, names.tools, names.prompt, names.target]
        wanted += [names.context, names.question, names.answer, *([names.system] if names.system else [])]
    return wanted + ([names.id] if names.id else [])

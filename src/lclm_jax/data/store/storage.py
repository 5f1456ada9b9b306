"""Folders of prepared data, local or on an object store: small files by name, large ones by a local path.

ArrayRecord reads local files alone. So a shard of a remote folder is first copied into a cache, and a new shard is made
in a temporary folder and then sent. A bucket that is mounted is a local folder like any other.
"""

import errno
import hashlib
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from lclm_jax.data.store.shard_cache import UNBOUNDED, HeldFile, ShardCache
from lclm_jax.errors import LclmError
from lclm_jax.files import replacing, write_bytes

_FETCHING = threading.Lock()
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Storage:
    """One folder. Names are relative to it, with forward slashes; writing is atomic for local folders.

    Args:
        root: local path or fsspec URL.
        cache: where copies of remote files are kept.
    """

    def __init__(self, root: str | Path, cache: ShardCache = UNBOUNDED):
        self.root = str(root)
        self.remote = "://" in self.root
        self.cache = cache
        self._opened: tuple[AbstractFileSystem, str] | None = None

    def __reduce__(self):
        return Storage, (self.root, self.cache)

    def __str__(self) -> str:
        return self.root

    def shown(self, name: str) -> str:
        """A name for messages."""
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        if not self.remote:
            return (Path(self.root) / name).is_file()
        system, inside = self._system()
        return system.isfile(f"{inside}/{name}")

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none. Raises ``PreparedError`` if that cannot be known."""
        try:
            if not self.remote:
                return (Path(self.root) / name).stat().st_size
            with driver_errors():
                system, inside = self._system()
                return system.info(f"{inside}/{name}")["size"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # not to be mistaken for a file that is missing, which would be made again
            raise PreparedError(f"cannot read {self.shown(name)}: {error}; try again") from None

    def read(self, name: str) -> bytes:
        """Content of a small file; raises ``OSError``."""
        if not self.remote:
            return (Path(self.root) / name).read_bytes()
        with driver_errors():
            system, inside = self._system()
            return system.cat_file(f"{inside}/{name}")

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes [start, stop) of a remote file for each of ``ranges``, asked for side by side.

        Raises ``OSError``, also where an answer is shorter than the range.
        """
        with driver_errors():
            system, inside = self._system()
            starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
            found = system.cat_ranges([f"{inside}/{name}"] * len(ranges), starts, stops, on_error="raise")
        for (start, stop), content in zip(ranges, found, strict=True):
            if len(content) != stop - start:
                raise OSError(f"{len(content)} bytes instead of {stop - start}")
        return found

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all; raises ``OSError``."""
        if self.remote:
            system, inside = self._system()
            system.makedirs(f"{inside}/{name}".rpartition("/")[0], exist_ok=True)
            system.pipe_file(f"{inside}/{name}", content)
            return
        write_bytes(Path(self.root) / name, content)

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        if not self.remote:
            (Path(self.root) / name).unlink(missing_ok=True)
        elif self.exists(name):
            system, inside = self._system()
            system.rm_file(f"{inside}/{name}")

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in ``folder``, sorted; none if it does not exist."""
        if not self.remote:
            path = Path(self.root) / folder
            return sorted(f"{folder}/{one.name}" for one in path.glob("*") if one.is_file())
        system, inside = self._system()
        found = system.ls(f"{inside}/{folder}", detail=True) if system.isdir(f"{inside}/{folder}") else []
        return sorted(f"{folder}/{one['name'].rpartition('/')[2]}" for one in found if one["type"] == "file")

    @contextmanager
    def refusals(self, name: str) -> Iterator[None]:
        """Turn what writing ``name`` meets into ``PreparedError``; ArrayRecord raises ``RuntimeError``."""
        try:
            yield
        except PreparedError:
            raise
        except (OSError, RuntimeError) as error:
            full = isinstance(error, RuntimeError) or error.errno in _FULL
            fix = "free some space or choose" if full else "make it writable or choose"
            raise PreparedError(
                f"cannot write {self.shown(name)}: {_first_line(error)}; {fix} another data.prepared"
            ) from error

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A local path to write the file ``name`` at; put in place when the block ends without an error."""
        if not self.remote:
            with replacing(Path(self.root) / name) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "file"
            yield made
            system, inside = self._system()
            system.makedirs(f"{inside}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(made), f"{inside}/{name}")

    def hold(self, name: str, sha256: str | None = None) -> HeldFile:
        """The file ``name`` on this machine; a remote file is copied into the cache once and its checksum compared.

        Raises:
            PreparedError: the file is missing, or its copy has another checksum.
        """
        if not self.remote:
            return HeldFile(Path(self.root) / name)
        folder = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        copy = f"{folder}/{(sha256 or '')[:16]}-{name.replace('/', '-')}"
        try:
            with _FETCHING:
                return self.cache.hold(copy, lambda: self.size(name) or 0, lambda path: self._fetch(name, path, sha256))
        except OSError as error:
            raise PreparedError(
                f"cannot copy {self.shown(name)} into {self.cache.root}: {error}; look at data.cache and its space,"
                " or prepare the data again if the file is missing"
            ) from None

    def digest(self, name: str, sha256: str) -> str:
        """SHA-256 of the file ``name``, which should be ``sha256``; raises as ``hold``."""
        held = self.hold(name, sha256)
        return file_digest(held.path)

    def _fetch(self, name: str, path: Path, sha256: str | None) -> None:
        with driver_errors():
            system, inside = self._system()
            system.get_file(f"{inside}/{name}", str(path))
        if sha256 is not None and (actual := file_digest(path)) != sha256:
            raise PreparedError(
                f"{self.shown(name)} is damaged: sha256 {actual[:12]}.. instead of {sha256[:12]}..; delete it and"
                " prepare the data again"
            )

    def _system(self) -> tuple[AbstractFileSystem, str]:
        if self._opened is None:
            system, inside = file_system(self.root)
            self._opened = system, inside.rstrip("/")
        return self._opened


def file_digest(path: Path) -> str:
    """SHA-256 of a local file; raises ``PreparedError`` if it is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PreparedError(f"cannot read {path}: {error.strerror}; prepare the data again") from None


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """(file system, path inside it) of ``url``, or of a local path.

    Raises:
        LclmError: Its scheme is unknown, or what serves it is not installed.
    """
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise LclmError(
            f"{url} cannot be opened ({error}); use a local path or a URL that fsspec knows: gs:// needs the package"
            " gcsfs, s3:// s3fs, az:// adlfs"
        ) from None


def _first_line(error: Exception) -> str:
    """What went wrong; ArrayRecord adds where in its source, which helps nobody."""
    return str(getattr(error, "strerror", None) or error).split(";", 1)[0].split("\n", 1)[0]


_DRIVER_ERRORS = {
    "botocore.exceptions": "BotoCoreError",
    "google.auth.exceptions": "GoogleAuthError",
    "aiohttp": "ClientError",
}

"""Module -> what it raises, beside ``OSError``, where credentials are missing or a server does not answer."""


def driver_error_types() -> tuple[type[Exception], ...]:
    """What the drivers that are loaded raise where credentials are missing or a server does not answer."""
    return tuple(getattr(sys.modules[name], error) for name, error in _DRIVER_ERRORS.items() if name in sys.modules)


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn the errors of object stores' drivers into ``OSError``."""
    try:
        yield
    except driver_error_types() as error:
        raise OSError(f"{error}; look at the credentials and the address of the store") from error


class PreparedError(LclmError):
    """Prepared data that is missing, damaged or made by other settings; the message names the file and the fix."""

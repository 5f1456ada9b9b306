"""Where files lie, on a disk or in a bucket of an object store: one type for both.

A local place is a ``pathlib.Path``. A URL (``gs://``, ``s3://``) is a ``UPath`` of universal_pathlib: the methods of
``pathlib`` over fsspec, down to ``stat().st_size``. It is typed as ``Path``, so code that stays with these methods
works in both places; what takes a local path only (``open``, ``os.fspath``) refuses it aloud. The other candidate, the
path of etils that Orbax takes, has other names for sizes and no recursive listing, and asks for the owner of every
local file, which a container may not know.

Buckets differ from disks where it matters here: a file appears whole or not at all, there is nothing to rename or to
append to, and folders are only parts of names.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lclm_jax.errors import LclmError
from lclm_jax.machine import cache_folder
from lclm_jax.types import JsonObject

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

RUN_SCHEMES = ("gs",)
"""Schemes of the stores that a run's checkpoints can be written to."""
EXTRAS = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}
"""Scheme -> what serves it, and the extra of this package that installs it."""

_NO_BUCKET = re.compile(r"^b/[^/]+/o$|NoSuchBucket|bucket does not exist", re.IGNORECASE)
"""What drivers say, beside the name of a file that is missing, where it is the bucket that is."""
_DRIVERS = {"gs": "gcs", "s3": "s3"}
"""Scheme -> driver of tensorstore."""
_DRIVER_ERRORS = {
    "botocore.exceptions": ("BotoCoreError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "google.api_core.exceptions": ("GoogleAPIError",),
    "gcsfs.retry": ("HttpError",),
    "aiohttp": ("ClientError",),
}
"""Module -> what it raises, beside ``OSError``, where a store refuses or does not answer."""


class StoreError(LclmError, OSError):
    """A bucket that cannot be used: missing, without permission, over its quota, out of reach."""


def to_path(place: str | Path) -> Path:
    """``place`` as a path: local, or of the object store that its URL names.

    Raises:
        StoreError: the URL has no bucket, or what serves it is not installed.
    """
    if isinstance(place, Path) or not is_remote(place):
        return Path(place) if isinstance(place, str) else place
    scheme, _, rest = str(place).partition("://")
    if not rest.strip("/"):
        raise StoreError(f"{place} names no bucket; write {scheme}://BUCKET/FOLDER")
    try:
        from fsspec.config import conf
        from upath import UPath

        # Several processes write a run's folder: what was listed a moment ago may be gone.
        for protocol in EXTRAS:
            conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
        path = UPath(str(place).rstrip("/"))
        path.fs  # noqa: B018 - made here, so that a missing package is named here
    except ImportError as error:
        extra = EXTRAS.get(scheme, (scheme, scheme))[1]
        raise StoreError(f"{place} needs a package ({error}); pip install 'lclm-jax[{extra}]'") from None
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in ("gs", "s3"))
        raise StoreError(f"{place} cannot be opened ({error}); use a local folder, or one of {known}") from None
    return cast(Path, path)


def is_remote(place: str | Path) -> bool:
    """Whether ``place`` is a URL."""
    return "://" in str(place)


def local_side(place: str | Path) -> Path:
    """A folder on this machine for what belongs to ``place`` and no bucket can hold: ``place`` itself if it is local.

    That is memory maps, traces, and files that a library writes by itself; all of it can be made again.
    """
    if not is_remote(place):
        return Path(place)
    return cache_folder("lclm_jax/runs") / _folder_name(str(place))


def local_copy(folder: Path) -> Path:
    """``folder`` on this machine: itself, or a copy of the remote one as it is now, kept in the user's cache folder.

    Raises:
        FileNotFoundError: the remote folder holds no file.
        StoreError: its store refuses.
    """
    if not is_remote(folder):
        return folder
    system, inside = file_system(folder)
    with store_errors(folder):
        found = sorted(system.find(inside, detail=True).items())
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    versions = ("size", "etag", "ETag", "mtime", "created")
    facts = [[name, *(str(entry.get(key)) for key in versions)] for name, entry in found]
    copy = cache_folder("lclm_jax/copies") / _folder_name(str(folder), json.dumps(facts))
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as partial:
            fetch_folder(folder, Path(partial) / "all")
            with contextlib.suppress(OSError):  # another process of this machine was faster
                (Path(partial) / "all").rename(copy)
    return copy


def _folder_name(place: str, facts: str = "") -> str:
    name = place.rstrip("/")
    return f"{name.rpartition('/')[2]}-{hashlib.sha256(f'{name} {facts}'.encode()).hexdigest()[:12]}"


def file_system(path: Path) -> "tuple[AbstractFileSystem, str]":
    """The file system of a remote path, and the name inside of it."""
    return path.fs, path.path  # type: ignore[attr-defined]


def kvstore_spec(folder: Path) -> JsonObject:
    """``folder`` as a key-value store of tensorstore.

    Raises:
        StoreError: tensorstore does not know its scheme.
    """
    if not is_remote(folder):
        return {"driver": "file", "path": f"{folder}/"}
    scheme, _, place = str(folder).partition("://")
    bucket, _, inside = place.partition("/")
    if scheme not in _DRIVERS:
        raise StoreError(f"{folder}: a run lies on a disk, or in gs:// or s3://")
    spec: JsonObject = {"driver": _DRIVERS[scheme], "bucket": bucket}
    spec["path"] = f"{inside}/" if inside else ""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return spec | ({"endpoint": endpoint} if scheme == "s3" and endpoint else {})


def names_below(folder: Path) -> dict[str, int]:
    """Name (relative, with forward slashes) -> bytes of every file below ``folder``; none if there is no folder."""
    if not is_remote(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    system, inside = file_system(folder)
    found = system.find(inside, detail=True)
    return {name[len(inside.rstrip("/")) + 1 :]: int(entry["size"]) for name, entry in sorted(found.items())}


def fetch_folder(folder: Path, into: Path) -> None:
    """Copy every file below the remote ``folder`` into the local folder ``into``; raises ``StoreError``."""
    system, inside = file_system(folder)
    with store_errors(folder):
        for name in names_below(folder):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{inside}/{name}", str(into / name))


def send_folder(local: Path, folder: Path, last: str | None = None) -> None:
    """Make the remote ``folder`` hold the files of ``local`` and no others.

    There is no renaming of folders in a bucket, so a reader may see a part. The file ``last`` says that all are there:
    it goes first and comes last. Raises ``StoreError``.
    """
    system, inside = file_system(folder)
    with store_errors(folder):
        old, new = names_below(folder), sorted(names_below(local), key=lambda name: (name == last, name))
        for name in sorted(old, key=lambda name: (name != last, name)):
            if name == last or name not in new:
                system.rm_file(f"{inside}/{name}")
        for name in new:
            system.put_file(str(local / name), f"{inside}/{name}")


def delete_folder(folder: Path) -> None:
    """Delete every file below the remote ``folder``; raises ``StoreError``."""
    system, inside = file_system(folder)
    with store_errors(folder):
        if names := [f"{inside}/{name}" for name in names_below(folder)]:
            system.rm(names)


@contextlib.contextmanager
def store_errors(path: Path, writes: bool = False) -> Iterator[None]:
    """Turn what an object store and its driver raise into ``StoreError``; errors of local files pass.

    A missing file passes as ``FileNotFoundError``; where something ``writes``, only the bucket can be missing.
    """
    try:
        yield
    except Exception as error:  # which drivers there are is known only now
        if isinstance(error, LclmError) or not isinstance(error, (OSError, *_driver_errors())):
            raise
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if not is_remote(path) or (missing and not writes and not _NO_BUCKET.search(str(error))):
            raise
        raise store_error(path, FileNotFoundError("404: no such bucket") if missing else error) from error


def _driver_errors() -> tuple[type[Exception], ...]:
    """What the drivers that are loaded raise beside ``OSError``."""
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in _DRIVER_ERRORS.items()
        if module in sys.modules
        for name in names
    )


def store_error(path: Path, error: BaseException) -> StoreError:
    """What went wrong with a bucket, in a line, and what to do about it."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    kind = f"{type(error).__name__} {getattr(error, 'code', '')} {text}".lower()
    bucket = "/".join(str(path).split("/")[:3])
    google = str(path).startswith("gs")
    for words, reason in _reasons(bucket, google):
        if any(word in kind for word in words):
            return StoreError(f"cannot use {path} ({text}): {reason}")
    return StoreError(f"cannot use {path} ({text}); look at the network and the address of the store, and try again")


def _reasons(bucket: str, google: bool) -> list[tuple[tuple[str, ...], str]]:
    """Words that an error may have (the first that fit count) -> the reason and the fix."""
    login = "gcloud auth application-default login" if google else "aws configure sso, or AWS_PROFILE"
    account = "a service account" if google else "a role"
    return [
        (
            ("resource_exhausted", "quota", "429", "slowdown", "slow down", "ratelimit", "too many requests"),
            f"the quota or the rate of {bucket} is used up; ask for more, or try again later",
        ),
        (
            ("credential", "unauthenticated", "unauthorized", "401", "refresherror", "token", "expired", "login"),
            f"this machine has no valid credentials for it; {login}, or give the machine {account}",
        ),
        (
            ("permission", "forbidden", "403", "access denied", "accessdenied", "anonymous"),
            f"these credentials may not read and write {bucket}; grant them both (objects: get, list, create, delete)",
        ),
        (
            ("bucket", "not_found", "404", "nosuchbucket"),
            f"{bucket} does not exist, or these credentials may not see it; make it, or mend the name",
        ),
    ]

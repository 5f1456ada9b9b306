"""File systems of URLs, by fsspec."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs


def file_system(url: str) -> tuple[Any, str]:
    """(file system, path inside it) of ``url``, or of a local path.

    Raises:
        ValueError: Its scheme is unknown, or what serves it is not installed.
    """
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be opened ({error}); use a local path or a URL that fsspec knows: gs:// needs the package"
            " gcsfs, s3:// s3fs, az:// adlfs"
        ) from None


_DRIVER_ERRORS = {
    "botocore.exceptions": "BotoCoreError",
    "google.auth.exceptions": "GoogleAuthError",
    "aiohttp": "ClientError",
}
"""Module -> what it raises, beside ``OSError``, where credentials are missing or a server does not answer."""


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn the errors of object stores' drivers into ``OSError``."""
    found = (getattr(sys.modules[name], error) for name, error in _DRIVER_ERRORS.items() if name in sys.modules)
    try:
        yield
    except tuple(found) as error:
        raise OSError(f"{error}; look at the credentials and the address of the store") from error

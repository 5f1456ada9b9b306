"""File systems of URLs, by fsspec."""

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

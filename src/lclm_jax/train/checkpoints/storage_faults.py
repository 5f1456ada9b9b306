"""What Orbax and tensorstore raise when storage fails, in one line, and what helps."""

import errno
import functools
import os
import sys

from lclm_jax.machine import remedy

# What Orbax and tensorstore raise when a file cannot be written or read.
STORAGE_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


@functools.cache
def hush_late_callbacks() -> None:
    """Drop the tracebacks of tensorstore's callbacks that come after a failed read or write was reported."""
    passed_on = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            passed_on(unraisable)

    sys.unraisablehook = hook


def line_of(error: BaseException) -> str:
    """The first line of what ``error`` says."""
    text = str(error).strip() or type(error).__name__
    if (said := _reason(error)) is not None:  # the libraries' own line is often longer than what is kept of it
        return "disk full" if said == errno.ENOSPC else os.strerror(said).lower()
    return text.splitlines()[0][:300]


def _reason(error: BaseException) -> int | None:
    """The error of the operating system (``errno``) that a library tells of in words; None: another one."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text and "quota" not in text:
        return errno.ENOSPC
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.EFBIG)
    return next((number for number in known if os.strerror(number).lower() in text.lower()), None)


def remedy_of(error: BaseException) -> str:
    """What to do about a save that failed."""
    number = error.errno if isinstance(error, OSError) and error.errno else _reason(error)
    if number is None:
        return "look at the storage"
    return remedy(number)

"""The standard streams, of which cron, daemons and ``<&-`` leave some closed."""

import os
import sys
from typing import BinaryIO

import click

from lclm_jax.errors import LclmError


def open_missing_streams() -> None:
    """Put the null device where standard input, output or error is closed.

    Otherwise the next file that is opened gets the number of the missing stream, and what a library prints lands in it.
    ``sys.stdin`` stays None, ``sys.__stdout__`` and ``sys.__stderr__`` as well: so a command can tell.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open while the process is
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal need not know every character of a text


def need_output(what: str) -> None:
    """Raise ``LclmError`` if standard output, the only place for ``what``, is closed."""
    if sys.__stdout__ is None:
        raise LclmError(f"standard output is closed, so {what} cannot be shown; send it to a file or a terminal")


def read_text(file: BinaryIO | None, what: str) -> str:
    """The UTF-8 text of ``file``, None is standard input; on a terminal, say that it is awaited.

    Raises ``LclmError``, which calls the text ``what``, if it cannot be read or is no UTF-8.
    """
    if file is None:
        if sys.stdin is None:
            raise LclmError(f"standard input is closed, so there is no {what}; give it with --{what} or --file")
        file = sys.stdin.buffer
    if file.isatty():
        click.echo(f"Type the {what}; end it with Ctrl-D on a line of its own.", err=True)
    try:
        return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise LclmError(
            f"the {what} is not UTF-8 text ({error.reason} at byte {error.start}); convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise LclmError(f"the {what} cannot be read ({error.strerror or error}); name a file with --file") from None


def drop_output() -> None:
    """Send what standard output still holds nowhere if it cannot be written, so that the exit is not about it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""What a scheduler's signals mean before training listens to them itself."""

import os
import signal
from typing import Any

import click


def start_again_when_asked() -> None:
    """From now on SIGTERM and SIGUSR1 end this process at once with status 75: nothing is lost, the command goes on.

    Without it, a job that is preempted while it starts would look like one that crashed. Training listens itself as
    soon as there is something to save.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _end)


def _end(number: int, frame: Any) -> None:
    click.echo(f"{signal.Signals(number).name}: stopped outside training; start again", err=True)
    os._exit(os.EX_TEMPFAIL)

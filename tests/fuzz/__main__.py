"""``python -m tests.fuzz``: draw inputs of every target in turn until the time is up; ends at the first failure.

An input that takes more than a minute of processor time or ten minutes of waiting, or more than 4 GiB, ends the program
with the place where it was.
"""

import faulthandler
import logging
import os
import resource
import signal
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import click
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tests.fuzz.targets import Targets

ROUND = 50
"""Inputs of a target before the next one has its turn."""
HANG_SECONDS = 60
"""Of processor time: a machine may be busy with other work."""
MOST_BYTES = 4 * 2**30


@click.command()
@click.option("--seconds", default=3600.0, show_default=True, help="How long to go on.")
@click.option("--only", multiple=True, help="Name of a target; may be repeated. Default: all.")
@click.option("--first-seed", default=0, show_default=True, help="Each round has the next seed.")
def main(seconds: float, only: tuple[str, ...], first_seed: int) -> None:
    """Fuzz readers, chats, tokenizers, configurations, model folders and checkpoints."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    faulthandler.register(signal.SIGPROF, chain=True)  # and then the signal ends the process
    counts: dict[str, int] = {}
    end, number = time.monotonic() + seconds, first_seed
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder))
        names = only or tuple(targets.all)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        while time.monotonic() < end:
            for name in names:
                _round(name, targets, number, counts)
            number += 1
            click.echo(f"{sum(counts.values()):,} inputs: " + ", ".join(f"{k} {n:,}" for k, n in counts.items()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    click.echo(
        f"no failure; seeds {first_seed} to {number - 1}, peak memory {used / 2**20:.0f} to {peak / 2**20:.0f} MiB"
    )
    if peak - used > MOST_BYTES:
        raise SystemExit("an input took more memory than an input should")


def _round(name: str, targets: Targets, number: int, counts: dict[str, int]) -> None:
    @seed(number)
    @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        faulthandler.dump_traceback_later(10 * HANG_SECONDS, exit=True)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        counts[name] = counts.get(name, 0) + 1
        targets.all[name](data)

    try:
        run()
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()

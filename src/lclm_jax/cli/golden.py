"""`lclm golden`: our numbers beside those of the PyTorch implementation."""

import sys
from pathlib import Path

import click

from lclm_jax.cli.options import json_option, write_result


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def golden(directory: Path, json_file: Path | None) -> None:
    """Run the golden cases in DIRECTORY, one line per quantity; exit with status 1 if one is out of tolerance."""
    from lclm_jax.parity.run import run_golden

    checks = []
    for check in run_golden(directory):
        checks.append(check)
        click.echo(str(check))
    write_result(json_file, [check._asdict() for check in checks])
    failed = sum(not check.ok for check in checks)
    click.echo(f"{len(checks) - failed} of {len(checks)} within tolerance")
    if failed:
        sys.exit(1)

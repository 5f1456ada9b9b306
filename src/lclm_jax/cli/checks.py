"""``lclm doctor``, ``lclm chaos`` and ``lclm golden``: is the machine sound, the run robust, the arithmetic right?"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lclm_jax.cli.options import cluster_option, config_argument, json_option, set_option, write_result
from lclm_jax.config import Config, ProcessesConfig, apply_environment, load_config
from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject

if TYPE_CHECKING:
    from lclm_jax.doctor.finding import Finding

_LOG_WIDTH = 180
"""Columns of a table in a log, where no terminal says how many there are."""


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--devices", type=click.IntRange(min=1), help="Devices of all processes together; default: the mesh's.")
@cluster_option
@set_option
@json_option
def doctor(
    config: Path | None, devices: int | None, cluster: Path | None, overrides: tuple[str, ...], json_file: Path | None
) -> None:
    """Check a job before it runs: versions, flags, devices, mesh, links, storage, clocks and limits.

    Run it as the job would run, with the same processes, image and CONFIG; without CONFIG what holds for any run is
    checked. It times an all-reduce and an all-gather along each axis of the mesh, and writes and reads in run_dir.
    Exits with status 1 if something will keep the job from running as it should. LCLM_PREFLIGHT=1 makes `lclm train`
    begin with the same checks.
    """
    if config is None and (cluster or overrides):
        raise click.UsageError("--cluster and --set change a CONFIG; name one")
    tree = None if config is None else load_config(config, overrides, cluster)
    if tree is not None:
        apply_environment(tree.environment, os.environ)
    found, total = _examined(tree, devices)
    failed = any(one.status == "failure" for one in found)
    if found[0].check != "job":
        write_result(json_file, {"ok": not failed, "findings": [one.as_json() for one in found]})
        _print_findings(found, total)
    if failed:
        sys.exit(1)


def _examined(tree: Config | None, devices: int | None) -> "tuple[list[Finding], int]":
    """What was found, and the number of processes; nothing imports JAX before its version is known to be good."""
    from lclm_jax.doctor.finding import Finding
    from lclm_jax.doctor.versions import check_environment, check_versions, installed_versions, nvidia_driver

    early = [check_versions(installed_versions(), nvidia_driver()), check_environment(os.environ)]
    if any(one.status == "failure" for one in early):
        return early, 1

    from lclm_jax.doctor.run import examine
    from lclm_jax.parallel import join_processes
    from lclm_jax.parallel.rendezvous import StartError

    try:
        with join_processes(ProcessesConfig() if tree is None else tree.train.processes) as process:
            return examine(tree, devices), 1 if process is None else process.total
    except StartError as error:
        return [*early, Finding("processes", "failure", str(error))], 1


def preflight(tree: Config) -> None:
    """The checks of `lclm doctor` in a job whose processes have met; raises ``LclmError`` if any failed."""
    import jax

    from lclm_jax.doctor.run import examine

    found = examine(tree)
    if found[0].check != "job":
        _print_findings(found, jax.process_count(), error=True)
    if failed := [one.check for one in found if one.status == "failure"]:
        raise LclmError(f"the checks before the run failed ({', '.join(failed)}); LCLM_PREFLIGHT=0 leaves them out")


def wants_preflight() -> bool:
    """Whether LCLM_PREFLIGHT asks for the checks."""
    return os.environ.get("LCLM_PREFLIGHT", "") not in ("", "0")


def _print_findings(found: "Sequence[Finding]", total: int, error: bool = False) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    style = {"ok": "green", "warning": "yellow", "failure": "bold red"}
    for one in found:
        table.add_row(one.check, f"[{style[one.status]}]{one.status}[/]", escape(one.shown(total)))
    console = Console(stderr=error)
    if not console.is_terminal:
        console = Console(stderr=error, width=_LOG_WIDTH)
    console.print(table)
    counts = {status: sum(one.status == status for one in found) for status in style}
    console.print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failure']} failures")


@click.command()
@config_argument
@click.option(
    "--faults", default=20, show_default=True, type=click.IntRange(1), help="Number of faults to inject, of all kinds."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the order and places of the faults.")
@click.option("--every", default=40, show_default=True, type=click.IntRange(6), help="Steps between two faults.")
@set_option
@json_option
def chaos(config: Path, faults: int, seed: int, every: int, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Inject faults into a run of CONFIG and verify bit-exact recovery: train twice, once undisturbed, and compare.

    Faults: kill -9 of the trainer and of a data worker, SIGTERM, a truncated and a bit-flipped checkpoint, a full
    disk, a corrupt data shard, NaN gradients, one of two processes hanging, and one losing its disk (needs
    mesh.replica=2). The folder of the run is emptied first. Exits with status 1 if a fault was not survived or if
    parameters or losses differ.
    """
    from lclm_jax.data.prepare.run import prepare_data
    from lclm_jax.drills import run_drill

    result = run_drill(load_config(config, overrides), faults, seed, prepare_data, every)
    write_result(json_file, result)
    _print_drill(result)
    if not result["identical"] or result["survived"] < faults:
        raise click.exceptions.Exit(1)


def _print_drill(result: JsonObject) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("fault", no_wrap=True),
        title=f"{len(result['strikes'])} faults in {result['steps']} steps",
        title_justify="left",
    )
    for name in ("injected", "survived", "steps redone", "seconds lost"):
        table.add_column(name, justify="right")
    kinds = sorted({strike["kind"] for strike in result["strikes"]})
    for kind in [*kinds, "all"]:
        mine = [strike for strike in result["strikes"] if kind in (strike["kind"], "all")]
        if kind == "all":
            table.add_section()
        sums = [sum(strike[name] for strike in mine) for name in ("survived", "redone_steps")]
        lost = sum(strike["lost_seconds"] for strike in mine)
        table.add_row(kind, str(len(mine)), *map(str, sums), f"{lost:.1f}")
    console = Console()
    console.print(table)
    for strike in result["strikes"]:
        if not strike["survived"]:
            console.print(f"not survived: {strike['kind']} at step {strike['step']}: {strike['message']}", markup=False)
    for difference in result["differences"]:
        console.print(f"differs: {difference}", markup=False)
    if result["identical"]:
        console.print("final parameters and losses equal those of the undisturbed run, bit for bit")
    console.print(f"{result['undisturbed_seconds']:.0f} s undisturbed, {result['disturbed_seconds']:.0f} s with faults")


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

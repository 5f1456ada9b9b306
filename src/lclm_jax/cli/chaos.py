"""``lclm chaos``."""

from pathlib import Path

import click

from lclm_jax.cli.options import config_argument, json_option, set_option, write_result
from lclm_jax.config import load_config
from lclm_jax.types import JsonObject


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
    disk, a corrupt data shard, NaN gradients, one of two processes hanging. The folder of the run is emptied first.
    Exits with status 1 if a fault was not survived or if parameters or losses differ.
    """
    from lclm_jax.data.prepare.run import prepare_data
    from lclm_jax.drills import run_drill

    result = run_drill(load_config(config, overrides), faults, seed, prepare_data, every)
    write_result(json_file, result)
    _print(result)
    if not result["identical"] or result["survived"] < faults:
        raise click.exceptions.Exit(1)


def _print(result: JsonObject) -> None:
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

"""``lclm status`` and ``lclm report``: a run seen from outside."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lclm_jax.cli.options import Place, json_option, load_run, write_result
from lclm_jax.report.formatting import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lclm_jax.ops.status import RunStatus, StageStatus

_LOG_WIDTH = 160
"""Columns of the table of several runs where no terminal says how many there are."""


@click.command()
@click.argument("runs", type=Place(), nargs=-1, required=True)
@click.option("--watch", type=click.FloatRange(min=1), metavar="SECONDS", help="Show it again so often, until Ctrl-C.")
@click.option(
    "--prometheus",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a text file for Prometheus (the textfile collector of its node exporter).",
)
@json_option
def status(runs: tuple[Path, ...], watch: float | None, prometheus: Path | None, json_file: Path | None) -> None:
    """Show progress, health and time left of RUNS, from the files in their folders alone.

    A run may be running, dead or finished, on this machine or another. It is shown as silent when nothing was written
    for two minutes and for ten times the duration of a step: look at its log, or rerun its command to resume. Several
    runs are shown as one table, a line each.
    """
    from rich.console import Console

    console = Console()
    if len(runs) > 1 and not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    while True:
        results = _results(runs)
        write_result(json_file, results[0] if len(runs) == 1 else results)
        if prometheus is not None:
            from lclm_jax.files import write_text
            from lclm_jax.ops.prometheus import prometheus_text

            write_text(prometheus, prometheus_text(dict(zip(map(str, runs), results, strict=True))))
        if watch is not None:
            console.clear()
        _show(console, results)
        if watch is None:
            return
        time.sleep(watch)


def _results(runs: tuple[Path, ...]) -> "list[RunStatus]":
    from lclm_jax.ops.status import run_status

    return [run_status(load_run(run)) for run in runs]


def _show(console: "Console", results: "list[RunStatus]") -> None:
    if len(results) > 1:
        console.print(_overview(results))
        return
    (result,) = results
    console.print(_headline(result), markup=False, highlight=False)
    console.print(_stages(result))
    for line in _notes(result):
        console.print(line, markup=False, highlight=False)


@click.command()
@click.argument("runs", type=Place(), nargs=-1, required=True)
@click.option("--out", type=Place(), help="HTML file; default: report.html in the first RUN.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML page about RUNS: evaluation, curves, goodput, data, generations, cost, configuration.

    The page is one file that needs no network. Several runs are shown side by side, with the keys in which they differ.
    Runs may still be training.
    """
    from lclm_jax.report.run.write import write_page

    out = out or runs[0] / "report.html"
    write_page([load_run(run) for run in runs], out)
    click.echo(out)


def _headline(result: "RunStatus") -> str:
    silent = result["silent_seconds"]
    where = result["state"] if result["state"] == "finished" else f"{result['stage']} {result['state']}"
    sign = "" if silent is None else f"; last sign of life {duration(silent)} ago"
    eta = result["eta_seconds"]
    end = "" if not eta else f"; {duration(eta)} of training left"
    return f"{result['name']}: {where}{sign}{end}"


def _overview(results: "list[RunStatus]") -> "Table":
    """Several runs, a line each: the stage that a run is at."""
    rows = []
    for result in results:
        cells = _cells(result["stage"], result["stages"][result["stage"]])
        silent, eta = result["silent_seconds"], result["eta_seconds"]
        cells = {name: cells[name] for name in ("stage", "state", "step", "loss", "tok/s", "MFU")}
        cells["goodput"] = _shown(result["goodput"], ".0%")
        cells["left"] = duration(eta) if eta else ""
        cells["last sign"] = "" if silent is None else f"{duration(silent)} ago"
        rows.append({"run": result["name"], **cells})
    return _table(rows)


def _stages(result: "RunStatus") -> "Table":
    return _table([_cells(name, stage) for name, stage in result["stages"].items()])


def _table(rows: list[dict[str, str]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    for column in columns:
        table.add_column(column, justify="left" if column in ("run", "stage", "state") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    return table


def _cells(name: str, stage: "StageStatus") -> dict[str, str]:
    """One row of the table by column."""
    recent, left = stage["recent"], stage["eta_seconds"]
    cells = {"stage": name, "state": stage["state"], "step": f"{stage['done_steps']}/{stage['steps']}"}
    cells |= dict.fromkeys(("loss", "tok/s", "MFU", "fill"), "")
    if recent:
        cells["loss"] = _shown(recent["loss_nats"], ".4f")
        cells["tok/s"] = f"{recent['raw_tokens_per_s']:,.0f}"
        cells["MFU"] = _shown(recent.get("mfu"), ".1%")
        cells["fill"] = f"{recent['decoder_fill']:.2f}"
    return cells | {
        "left": "" if not left else ("~" if stage["eta_is_rough"] else "") + duration(left),
        "goodput": _shown(stage["goodput"], ".0%"),
        "saved": f"{stage['checkpoints'][-1]}" if stage["checkpoints"] else "",
    }


def _notes(result: "RunStatus") -> list[str]:
    """Where the time went, and what happened besides steps."""
    seconds = result["goodput_seconds"]
    whole = sum(seconds.values())
    lines = []
    if whole:
        parts = [
            f"{kind.replace('_', ' ')} {spent / whole:.1%}" for kind, spent in seconds.items() if spent / whole >= 5e-4
        ]
        lines.append(f"{duration(whole)} so far: {', '.join(parts)}")
    for name, stage in result["stages"].items():
        what = {
            "restarts": stage["restarts"],
            "steps redone": stage["redone_steps"],
            "failed saves": stage["failed_saves"],
            "loss spikes": stage["spikes"],
            "rewinds": stage["rewinds"],
            "skipped steps": stage["skipped_steps"],
            "non-finite steps": stage["nonfinite_steps"],
        }
        happened = [f"{count} {kind}" for kind, count in what.items() if count]
        if happened:
            lines.append(f"{name}: {', '.join(happened)}")
        if stage["last_failure"]:
            lines.append(f"{name}: last failed save: {stage['last_failure']}")
    return lines


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

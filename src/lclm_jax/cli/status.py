"""``lclm status`` and ``lclm report``: a run looked at from outside."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_jax.cli.options import json_option, load_run, run_argument, write_result

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@run_argument
@json_option
def status(run: Path, json_file: Path | None) -> None:
    """Say where RUN is, how it does and when it ends, from the files in its folder alone.

    It may be running, dead or finished, on this or another machine. A run that has been silent for two minutes and for
    ten times its step is shown as silent: look at its log, or start it again; see docs/operations.md.
    """
    from rich.console import Console

    from lclm_jax.ops.status import run_status

    result = run_status(load_run(run))
    write_result(json_file, result)
    console = Console()
    console.print(_headline(result), markup=False, highlight=False)
    console.print(_stages(result))
    for line in _notes(result):
        console.print(line, markup=False, highlight=False)


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="HTML file; by default report.html in the first RUN.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write a page about RUNS: curves by stage, goodput, evaluations, generations, configuration and environment.

    It is one HTML file that needs no network; of several runs it shows the differences side by side. A run that is
    still training may be looked at, too.
    """
    from lclm_jax.report.html_report import write_page

    out = out or runs[0] / "report.html"
    write_page([load_run(run) for run in runs], out)
    click.echo(out)


def _headline(result: dict[str, Any]) -> str:
    silent = result["silent_seconds"]
    where = result["state"] if result["state"] == "finished" else f"{result['stage']} {result['state']}"
    sign = "" if silent is None else f"; last sign of life {_ago(silent)} ago"
    eta = result["eta_seconds"]
    end = "" if not eta else f"; {_ago(eta)} of training left"
    return f"{result['name']}: {where}{sign}{end}"


def _stages(result: dict[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    rows = [_cells(name, stage) for name, stage in result["stages"].items()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    for column in columns:
        table.add_column(column, justify="left" if column in ("stage", "state") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    return table


def _cells(name: str, stage: dict[str, Any]) -> dict[str, str]:
    """One row of the table by column."""
    recent, left = stage["recent"] or {}, stage["eta_seconds"]
    return {
        "stage": name,
        "state": stage["state"],
        "step": f"{stage['done_steps']}/{stage['steps']}",
        "loss": _shown(recent.get("loss_nats"), "{:.4f}"),
        "tok/s": _shown(recent.get("raw_tokens_per_s"), "{:,.0f}"),
        "MFU": _shown(recent.get("mfu"), "{:.1%}"),
        "fill": _shown(recent.get("decoder_fill"), "{:.2f}"),
        "left": "" if not left else ("~" if stage["eta_is_rough"] else "") + _ago(left),
        "goodput": _shown(stage["goodput"], "{:.0%}"),
        "saved": f"{stage['checkpoints'][-1]}" if stage["checkpoints"] else "",
    }


def _notes(result: dict[str, Any]) -> list[str]:
    """Where the time went, and what happened besides steps."""
    seconds = result["goodput_seconds"]
    whole = sum(seconds.values())
    lines = []
    if whole:
        parts = [
            f"{kind.replace('_', ' ')} {spent / whole:.1%}" for kind, spent in seconds.items() if spent / whole >= 5e-4
        ]
        lines.append(f"{_ago(whole)} so far: {', '.join(parts)}")
    for name, stage in result["stages"].items():
        what = {
            "restarts": stage["restarts"],
            "steps redone": stage["redone_steps"],
            "failed saves": stage["failed_saves"],
            "loss spikes": stage["spikes"],
            "rewinds": stage["rewinds"],
            "steps skipped": stage["skipped_steps"],
            "steps not finite": stage["nonfinite_steps"],
        }
        happened = [f"{count} {kind}" for kind, count in what.items() if count]
        if happened:
            lines.append(f"{name}: {', '.join(happened)}")
        if stage["last_failure"]:
            lines.append(f"{name}: last failed save: {stage['last_failure']}")
    return lines


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _ago(seconds: float) -> str:
    """``7384`` -> ``2 h 3 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"

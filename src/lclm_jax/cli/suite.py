"""``lclm suite``."""

import sys
from pathlib import Path

import click


@click.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--samples", "only_samples", is_flag=True, help="Make the samples and count them; run no system.")
@click.option("--show", metavar="ID", help="Print one sample (a number, or its id) as every kind of system reads it.")
@click.option("--report", "only_report", is_flag=True, help="Write the report about what is measured; run no system.")
def suite(suite: Path, only_samples: bool, show: str | None, only_report: bool) -> None:
    """Answer the benchmarks of SUITE with its systems, score them, time them, and write a report.

    SUITE is a YAML file that names tasks and systems (see docs/how-to/benchmark.md). Each system runs in a process of
    its own. What can go wrong is checked before the first answer. Results are written sample by sample: rerun the same
    command to resume after any interruption, or to retry samples that failed.
    """
    from lclm_jax.suite.spec import load_suite

    tree = load_suite(suite)
    if only_samples or show is not None:
        from lclm_jax.suite.run import prepare_samples

        samples = prepare_samples(tree)
        _show(samples, show) if show is not None else _count(samples)
        return
    if not only_report:
        from lclm_jax.cli.progress_bar import progress_bar
        from lclm_jax.suite.run import run_suite

        with progress_bar() as progress:
            run_suite(tree, progress)
    _write_report(tree)


def _count(samples) -> None:
    tasks: dict[str, int] = {}
    for one in samples:
        tasks[one.task] = tasks.get(one.task, 0) + 1
    for task, count in tasks.items():
        click.echo(f"{task}: {count:,} samples")


def _show(samples, wanted: str) -> None:
    from lclm_jax.errors import LclmError

    chosen = [one for number, one in enumerate(samples) if wanted in (one.id, str(number))]
    if not chosen:
        raise LclmError(f"no sample is called {wanted!r}; the ids are {samples[0].id} to {samples[-1].id}")
    (one,) = chosen
    click.echo(f"{one.id}: answers {list(one.answers)}, at most {one.max_new_tokens} new tokens\n")
    for title, text in (
        ("raw", one.prompt("raw") + one.prefix),
        ("context in memory tags", one.prompt("memory") + one.prefix),
        ("question apart", one.question + one.prefix),
    ):
        click.echo(f"--- {title}\n{text}\n")


def _write_report(tree) -> None:
    from rich.console import Console
    from rich.table import Table

    from lclm_jax.report.suite.write import terminal_rows, write_report

    summary = write_report(tree)
    header, rows = terminal_rows(summary)
    table = Table(title=tree.title or tree.name, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name in ("system", "task") else "right")
    for row in rows:
        table.add_row(*row)
    # Where there is no terminal the width is free: narrow columns would break numbers in two.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for name, count in summary.missing.items():
        click.echo(f"{name}: {count:,} samples are not measured yet", err=True)
    click.echo(Path(tree.out) / "report" / "report.html")

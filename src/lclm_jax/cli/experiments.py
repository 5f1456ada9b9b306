"""``lclm ablate`` and ``lclm suite``: experiments that a file describes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from lclm_jax.cli.options import exit_for_restart_on_signals, set_environment, set_option
from lclm_jax.config import StudyConfig, load_study
from lclm_jax.errors import LclmError

if TYPE_CHECKING:
    from lclm_jax.ablate.jobs import Job

_JOB_VARIABLES = ("LCLM_ABLATE_JOB", "SLURM_ARRAY_TASK_ID")


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--plan", "only_plan", is_flag=True, help="Show variants, sizes, cost and finished jobs; run nothing.")
@click.option("--report", "only_report", is_flag=True, help="Write the report about the finished jobs; run nothing.")
@click.option(
    "--job", type=int, envvar=_JOB_VARIABLES, help=f"Run this job alone; also read from {' or '.join(_JOB_VARIABLES)}."
)
@click.option("--anyway", is_flag=True, help="Run the study even if baseline and pilot show that it is too small.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the report; default: report/ in the folder of the study."
)
@set_option
def ablate(
    study: Path, only_plan: bool, only_report: bool, job: int | None, overrides: tuple[str, ...], **options
) -> None:
    """Train the variants of STUDY on the same batches, compare them over seeds with intervals, and write a report.

    STUDY is a YAML file (see configs/ablate): a base configuration, factors or variants, seeds, a budget, and the
    smallest difference that the study must detect. The corpus is prepared once. Baseline and pilot run first: if their
    differences over seeds show that the study could only tie, nothing else runs. Finished jobs are never run again;
    rerun the same command to resume.

    On a cluster, each job is one task of a SLURM array (LCLM_VERB=ablate SBATCH_ARGS="--array=0-9 ..." launch/slurm.sh
    STUDY) or one job of SkyPilot (LCLM_VERB=ablate launch/skypilot.sh gpu STUDY --job 0). Afterwards, --report compares
    their results.
    """
    from lclm_jax.ablate.jobs import jobs_of

    tree = load_study(study, overrides)
    if only_plan:
        _show_plan(tree, to_stderr=False)
        return
    if job is not None and not only_report:
        exit_for_restart_on_signals()
        _run_job(tree, jobs_of(tree), job)
        return
    if not only_report:
        from lclm_jax.ablate.run import run_study

        _show_plan(tree, to_stderr=True)
        settings = [argument for text in overrides for argument in ("--set", text)]
        run_study(tree, [sys.executable, "-m", "lclm_jax", "ablate", str(study), *settings, "--job"], options["anyway"])
    _write_report(tree, options["out"])


def _run_job(tree: StudyConfig, jobs: "list[Job]", number: int) -> None:
    from lclm_jax.ablate.variants import variant_config

    if not 0 <= number < len(jobs):
        raise click.BadParameter(f"{number} is not a job of {tree.name}; its jobs are 0 to {len(jobs) - 1}")
    config = variant_config(tree, jobs[number].variant, jobs[number].seeds[0])
    set_environment(config)

    from lclm_jax.ablate.run import prepare, run_job
    from lclm_jax.cli.progress_bar import progress_bar
    from lclm_jax.parallel import join_processes

    with join_processes(config.train.processes), progress_bar() as progress:
        prepare(tree)
        run_job(tree, jobs[number], progress)


def _write_report(tree: StudyConfig, out: Path | None) -> None:
    from lclm_jax.ablate.jobs import collect
    from lclm_jax.ablate.variants import expand, variant_config
    from lclm_jax.report.study.write import write_report

    folder = out or Path(tree.run_dir) / "report"
    variants = expand(tree)
    write_report(tree, variants, collect(tree), folder)
    places = {"run_dir": "", "data": {"prepared": None}, "tokenizer": {"decoder": None}}
    baseline = variant_config(tree, variants[0], tree.seeds[0]).model_dump(mode="json")
    for name, hidden in places.items():  # the folders of the study are no part of what was run
        baseline[name] = {**baseline[name], **hidden} if isinstance(hidden, dict) else hidden
    (folder / "baseline.yaml").write_text(yaml.safe_dump(baseline, sort_keys=False), encoding="utf-8")
    click.echo(folder / "report.md")


def _show_plan(tree: StudyConfig, to_stderr: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from lclm_jax.ablate.cost import planned

    table = Table(title=f"{tree.name}: {tree.title}", title_justify="left")
    for name in ("job", "variant", "seeds", "parameters", "steps", "train FLOPs", "done"):
        table.add_column(name, justify="left" if name in ("variant", "seeds") else "right")
    rows, totals = planned(tree)
    for row in rows:
        table.add_row(*row)
    Console(stderr=to_stderr).print(table)
    click.echo(totals, err=to_stderr)


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
        _show_sample(samples, show) if show is not None else _count_samples(samples)
        return
    if not only_report:
        from lclm_jax.cli.progress_bar import progress_bar
        from lclm_jax.suite.run import run_suite

        with progress_bar() as progress:
            run_suite(tree, progress)
    _write_suite_report(tree)


def _count_samples(samples) -> None:
    tasks: dict[str, int] = {}
    for one in samples:
        tasks[one.task] = tasks.get(one.task, 0) + 1
    for task, count in tasks.items():
        click.echo(f"{task}: {count:,} samples")


def _show_sample(samples, wanted: str) -> None:

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


def _write_suite_report(tree) -> None:
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

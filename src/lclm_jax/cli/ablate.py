"""``lclm ablate``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from lclm_jax.cli.options import exit_for_restart_on_signals, set_environment, set_option
from lclm_jax.config import StudyConfig, load_study

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

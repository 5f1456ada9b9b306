"""``lclm data``: prepare corpora, inspect packed rows."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lclm_jax.cli.agent import expand_traces, lookups
from lclm_jax.cli.options import config_argument, json_option, load_for_devices, set_option, write_result
from lclm_jax.config import Config, RunPaths, load_config
from lclm_jax.machine import cores

if TYPE_CHECKING:
    from lclm_jax.data.loading.loader import Loader
    from lclm_jax.data.packing.row_layout_search import MakeSources
    from lclm_jax.text.tokenizer import Tokenizers


@click.group()
def data() -> None:
    """Prepare corpora and inspect packed rows."""


data.add_command(expand_traces)
data.add_command(lookups)


@data.command()
@config_argument
@click.option("--workers", type=click.IntRange(1), help="Number of processes; default: one per core.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of counting it.")
@click.option(
    "--share", metavar="K/N", help="Make only the parts of worker K (from 0) of N; finish with a call without --share."
)
@set_option
@json_option
def prepare(
    config: Path,
    workers: int | None,
    strict: bool,
    share: str | None,
    overrides: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Tokenize the corpus of CONFIG into shards, after training a tokenizer if CONFIG names none.

    Finished parts are kept: after an interruption, rerun the same command to resume. Rejected rows are counted by
    reason, and a sample of them is written to rejects.jsonl beside the shards.
    """
    from lclm_jax.data.prepare.run import prepare_data, prepare_worker_parts, train_missing_tokenizer
    from lclm_jax.ops.run_folder import claim_run, own_run
    from lclm_jax.progress import log_progress

    tree = load_config(config, overrides)
    if share is not None:  # several workers share the folder, so none of them claims the run
        train_missing_tokenizer(tree)
        made = prepare_worker_parts(tree, share, log_progress(), workers or cores(), strict)
        click.echo(f"share {share}: made {made} parts in {RunPaths(tree).prepared}")
        return
    with own_run(tree, claim=False):
        if train_missing_tokenizer(tree):
            claim_run(tree)
        manifest = prepare_data(tree, workers, strict)
        claim_run(tree)
    for name, splits in manifest["collections"].items():
        for split, entry in splits.items():
            click.echo(f"{name}/{split}: {entry['records']:,} records, {entry['decoder_tokens']:,} tokens")
    write_result(json_file, manifest)
    click.echo(RunPaths(tree).prepared)


@data.command("prepare-on")
@click.argument("executor", type=click.Choice(["local", "slurm", "ray"]))
@config_argument
@click.option(
    "--tasks", type=click.IntRange(1), default=64, show_default=True, help="Number of tasks that share the parts."
)
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="Argument of the executor, for example -o partition=cpu."
)
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of counting it.")
@set_option
def prepare_on(
    executor: str, config: Path, tasks: int, options: tuple[str, ...], strict: bool, overrides: tuple[str, ...]
) -> None:
    """Prepare the corpus of CONFIG on an executor of datatrove: processes, a SLURM job array, or a Ray cluster.

    With SLURM the command returns once the jobs are submitted. Finished parts are kept: rerun it to make those that
    failed.
    """
    import yaml

    from lclm_jax.data.prepare.executors import run_on
    from lclm_jax.data.prepare.planning import plan_preparation
    from lclm_jax.data.prepare.run import train_missing_tokenizer

    tree = load_config(config, overrides)
    train_missing_tokenizer(tree)
    given = dict(option.partition("=")[::2] for option in options)
    run_on(executor, plan_preparation(tree), tasks, {k: yaml.safe_load(v) for k, v in given.items()}, strict)
    click.echo(RunPaths(tree).prepared)


@data.command()
@config_argument
@click.option("--sample", default=0.02, show_default=True, help="Fraction of the records that are tokenized again.")
@set_option
@json_option
def validate(config: Path, sample: float, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Check the prepared corpus of CONFIG from end to end; exit with status 1 if it has defects.

    Checks every checksum and every record with its lengths, ids and cuts; tokenizes a sample of the records again.
    Names raw files that have changed since.
    """
    from lclm_jax.data.inspect.validate import validate as defects_of
    from lclm_jax.data.prepare.file_versions import changed_since
    from lclm_jax.data.store.shards import shard_cache
    from lclm_jax.data.store.storage import Storage
    from lclm_jax.text.run_tokenizers import load_tokenizers

    tree = load_config(config, overrides)
    storage = Storage(RunPaths(tree).prepared, shard_cache(tree))
    defects = [str(defect) for defect in defects_of(storage, load_tokenizers(tree), sample)]
    defects += changed_since(tree, storage)
    for defect in defects:
        click.echo(defect, err=True)
    write_result(json_file, {"prepared": str(storage), "defects": defects})
    if defects:
        raise click.ClickException(f"{len(defects)} defects in {storage}")
    click.echo(f"{storage} is sound")


@data.command()
@config_argument
@click.option("--html", type=click.Path(path_type=Path), help="Also write them to this file as one page with a plot.")
@set_option
@json_option
def stats(config: Path, html: Path | None, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Print what the prepared corpus of CONFIG holds.

    Tokens and bytes by collection, split and source, languages if a column says them, lengths, records that equal
    others, how full packed rows are, and what preparation left out.
    """
    from lclm_jax.data.inspect.stats import corpus_stats
    from lclm_jax.report.corpus import show_corpus, write_corpus_page
    from lclm_jax.text.run_tokenizers import load_tokenizers

    tree = load_config(config, overrides)
    found = corpus_stats(tree, load_tokenizers(tree))
    write_result(json_file, found.as_json())
    if html is not None:
        write_corpus_page(found, f"{tree.name}: prepared corpus", html)
    show_corpus(found, sys.stdout.isatty())
    click.echo(html if html is not None else RunPaths(tree).prepared)


@data.command()
@config_argument
@click.option("--stage", help="Stage whose rows are shown; default: the first.")
@click.option("--rows", default=2, show_default=True, type=click.IntRange(1), help="Number of rows.")
@click.option(
    "--from", "first", default=0, type=click.IntRange(0), show_default=True, help="Global number of the first row."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write the rows to this file as one self-contained page.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write histograms of the stage to this PNG.")
@set_option
def show(config: Path, stage: str | None, overrides: tuple[str, ...], **options) -> None:
    """Print packed rows of CONFIG: segments, spans with their latents, and the tokens that carry loss.

    With --html or --plot, write these files instead.
    """
    tree = load_config(config, overrides)
    show_rows(tree, stage_of(tree, stage), **options)


@data.command()
@config_argument
@click.option("--stage", help="Stage whose rows are planned; default: all stages.")
@click.option("--workers", type=click.IntRange(1), help="Number of processes; default: one per core.")
@set_option
def index(config: Path, stage: str | None, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Build the row index of the stages of CONFIG in advance; otherwise training builds it as it needs it.

    Stored blocks are kept: after an interruption, rerun the same command to resume.
    """
    tree = load_config(config, overrides)
    build_indices(tree, list(tree.stages) if stage is None else [stage_of(tree, stage)], workers or cores())


@data.command()
@config_argument
@click.option("--stage", help="Stage to measure; default: the first.")
@click.option(
    "--simulate",
    type=click.FloatRange(1e6),
    metavar="TOKENS",
    help="Measure a simulated long-tailed corpus of this size.",
)
@set_option
def budget(config: Path, stage: str | None, simulate: float | None, overrides: tuple[str, ...]) -> None:
    """Measure how well rows of CONFIG are filled; propose a row length and a number of encoder rows.

    Tries layouts until 98 % of the decoder positions and 90 % of the encoder positions are in use.
    """
    tree = load_config(config, overrides)
    show_budget(tree, stage_of(tree, stage), simulate)


@data.command()
@config_argument
@click.option("--stage", help="Stage whose rows are read; default: the first that is distilled.")
@set_option
def teach(config: Path, stage: str | None, overrides: tuple[str, ...]) -> None:
    """Store the largest logits of a stage's teacher once (distill.offline and .top_k); rerun the command to resume."""
    tree = load_for_devices(config, overrides, None)
    from lclm_jax.interop.init_from_hf import imported_params
    from lclm_jax.train.teach import teach_stage

    click.echo(teach_stage(tree, stage, imported_params))


def stage_of(tree: Config, stage: str | None) -> str:
    """``stage``, by default the first; raises ``click.BadParameter`` if there is no such stage."""
    if stage is None:
        return next(iter(tree.stages))
    if stage not in tree.stages:
        raise click.BadParameter(f"{stage!r} is not a stage of {tree.name}; its stages are {', '.join(tree.stages)}")
    return stage


def show_budget(config: Config, stage: str, simulate: float | None) -> None:
    """Measure row layouts of ``stage``, of ``simulate`` tokens of simulated documents if given, and print the best."""
    from lclm_jax.data.packing.row_layout_search import LayoutFill, search_row_layouts

    make = _sources_of(config, stage, simulate)
    click.echo(f"stage {stage}: planning a sample of its records", err=True)
    tried: list[LayoutFill] = []
    for fill in search_row_layouts(config, stage, make):
        if not tried:
            click.echo("row_length  encoder_rows  decoder fill  encoder fill  left out")
        tried.append(fill)
        click.echo(
            f"{fill.pack.row_length:10} {fill.pack.encoder_rows:13} {fill.decoder:13.3f} {fill.encoder:13.3f}"
            f" {fill.left_out:9.1%}"
        )
    best = max(tried, key=lambda fill: fill.score)
    layout = ", ".join(f"{n}: {getattr(best.pack, n)}" for n in ("row_length", "encoder_rows", "encoder_row_length"))
    reached = "" if best.sufficient else " (the best of those tried; below the targets)"
    click.echo(f"data.pack: {{{layout}}}{reached}")


def _sources_of(config: Config, stage: str, simulate: float | None) -> "MakeSources":
    from lclm_jax.data.packing.sources import make_sources
    from lclm_jax.text.run_tokenizers import load_tokenizers

    tokenizers = load_tokenizers(config)
    if simulate is None:
        return lambda changed: make_sources(changed, stage, tokenizers)
    from lclm_jax.bench.simulated.corpus import simulated_sources

    return lambda changed: simulated_sources(changed, stage, tokenizers, simulate)


def build_indices(config: Config, stages: list[str], workers: int) -> None:
    """Build all blocks of the row indices of ``stages`` that are not stored."""
    from lclm_jax.data.loading.loader import make_loader
    from lclm_jax.data.loading.prebuild import prebuild
    from lclm_jax.data.packing.mixture import RatioSchedule
    from lclm_jax.ops.run_folder import own_run
    from lclm_jax.progress import log_progress
    from lclm_jax.text.run_tokenizers import load_tokenizers

    tokenizers = load_tokenizers(config)
    with own_run(config):
        for stage in stages:
            settings, schedule = config.stages[stage], RatioSchedule(config, stage)
            steps = dict(zip(schedule.ratios, schedule.steps_before(settings.steps), strict=True))
            with make_loader(config, stage, tokenizers) as loader:
                for ratio, index in loader.indices.items():
                    if rows := steps[ratio] * settings.batch_rows:
                        made = prebuild(index, rows, workers, log_progress(unit="rows", scale=1))
                        click.echo(f"{stage}, N = {ratio}: {rows:,} rows, {made} blocks built in {index.folder}")


_PLOTTED_ROWS = 2000


def show_rows(config: Config, stage: str, rows: int, first: int, html: Path | None, plot: Path | None) -> None:
    """Print ``rows`` packed rows of ``stage`` from ``first`` on, or write them as a page, or plot the stage."""
    from lclm_jax.data.loading.loader import make_loader
    from lclm_jax.report.packed_rows import render_page
    from lclm_jax.text.run_tokenizers import load_tokenizers

    settings = config.stages[stage]
    total = settings.steps * settings.batch_rows
    # Rows after the last step's can be shown too.
    steps = max(settings.steps, -(-(first + rows) // settings.batch_rows))
    tree = config.model_copy(update={"stages": {**config.stages, stage: settings.model_copy(update={"steps": steps})}})
    tokenizers, wanted = load_tokenizers(tree), range(first, first + rows)
    with tempfile.TemporaryDirectory() as index, make_loader(tree, stage, tokenizers, index_folder=index) as loader:
        if plot is not None:
            from lclm_jax.report.histograms import plot_ratios

            for path in plot_ratios(loader.indices, min(total, _PLOTTED_ROWS), plot, f"{config.name}, stage {stage}"):
                click.echo(path)
        if html is not None:
            pieces = render_page(
                ((number, *loader.row(number)[:2]) for number in wanted), tokenizers, f"{config.name}, stage {stage}"
            )
            with html.open("w", encoding="utf-8") as file:
                file.writelines(pieces)
            click.echo(html)
        if plot is None and html is None:
            _print(tree, loader, tokenizers, wanted)


def _print(config: Config, loader: "Loader", tokenizers: "Tokenizers", rows: range) -> None:
    from rich.console import Console

    from lclm_jax.data.inspect.show import LEGEND, render_rows

    colours = sys.stdout.isatty()
    console = Console(soft_wrap=True, markup=colours, highlight=False)
    if colours:
        console.print(LEGEND)
    for number in rows:
        ratio, batch, stats = loader.row(number)
        model = config.model.model_copy(update={"ratio": ratio})
        text = render_rows(batch, tokenizers, model, markup=colours)
        console.print(text.replace("row 0", f"row {number}", 1))
        console.print(f"N = {ratio}, fill: decoder {stats.decoder_fill:.2f}, encoder {stats.encoder_fill:.2f}\n")

"""``lclm data``: prepare corpora, look at packed rows."""

import os
from pathlib import Path
from typing import Any

import click

from lclm_jax.cli.options import config_argument, json_option, set_option, write_result
from lclm_jax.config import Config, RunPaths, load_config


@click.group()
def data() -> None:
    """Prepare corpora and look at packed rows."""


@data.command()
@config_argument
@click.option("--workers", type=click.IntRange(1), help="Processes; one per core by default.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of counting it.")
@click.option("--share", metavar="K/N", help="Make only the parts of worker K of N, from 0; then call it without.")
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
    """Tokenize the corpus of CONFIG into shards, after training its tokenizer if it names none.

    Parts that an interrupted call finished are kept. What is left out is counted by reason; bad rows are sampled in
    rejects.jsonl beside the shards.
    """
    from lclm_jax.data.prepare import prepare_share
    from lclm_jax.pipeline import log_progress, own_run, prepare_data, train_missing_tokenizer

    tree = load_config(config, overrides)
    if share is not None:  # many of them work in one folder at once, so none claims the run
        train_missing_tokenizer(tree)
        made = prepare_share(tree, share, log_progress(), workers or os.cpu_count() or 1, strict)
        click.echo(f"share {share}: {made} parts are made in {RunPaths(tree).prepared}")
        return
    with own_run(tree):
        manifest = prepare_data(tree, workers, strict)
    for name, splits in manifest["collections"].items():
        for split, entry in splits.items():
            click.echo(f"{name}/{split}: {entry['records']:,} records, {entry['decoder_tokens']:,} tokens")
    write_result(json_file, manifest)
    click.echo(RunPaths(tree).prepared)


@data.command("prepare-on")
@click.argument("executor", type=click.Choice(["local", "slurm", "ray"]))
@config_argument
@click.option("--tasks", type=click.IntRange(1), default=64, show_default=True, help="Tasks that share the parts.")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Argument of the executor: -o partition=cpu.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of counting it.")
@set_option
def prepare_on(
    executor: str, config: Path, tasks: int, options: tuple[str, ...], strict: bool, overrides: tuple[str, ...]
) -> None:
    """Prepare the corpus of CONFIG on an executor of datatrove: processes, a SLURM job array, or a Ray cluster.

    SLURM returns when the jobs are submitted. Call it again to make what failed; finished parts are kept.
    """
    import yaml

    from lclm_jax.data.executors import run_on
    from lclm_jax.data.prepare import plan_preparation
    from lclm_jax.pipeline import train_missing_tokenizer

    tree = load_config(config, overrides)
    train_missing_tokenizer(tree)
    given = dict(option.partition("=")[::2] for option in options)
    run_on(executor, plan_preparation(tree), tasks, {k: yaml.safe_load(v) for k, v in given.items()}, strict)
    click.echo(RunPaths(tree).prepared)


@data.command()
@config_argument
@click.option("--sample", default=0.02, show_default=True, help="Share of the records that are tokenized again.")
@set_option
@json_option
def validate(config: Path, sample: float, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Check the prepared corpus of CONFIG from end to end; exit with status 1 if anything is wrong with it.

    Every checksum, every record, its lengths, ids and cuts; a sample of the records is tokenized again.
    """
    from lclm_jax.data.shard_cache import ShardCache
    from lclm_jax.data.storage import Storage
    from lclm_jax.data.validate import validate as defects_of
    from lclm_jax.train.stages import load_tokenizers

    tree = load_config(config, overrides)
    storage = Storage(RunPaths(tree).prepared, ShardCache.of(tree))
    defects = [str(defect) for defect in defects_of(storage, load_tokenizers(tree), sample)]
    for defect in defects:
        click.echo(defect, err=True)
    write_result(json_file, {"prepared": str(storage), "defects": defects})
    if defects:
        raise click.ClickException(f"{len(defects)} defects in {storage}")
    click.echo(f"{storage} is sound")


@data.command()
@config_argument
@click.option("--stage", help="Stage whose rows to show; the first by default.")
@click.option("--rows", default=2, show_default=True, type=click.IntRange(1), help="How many rows.")
@click.option(
    "--from", "first", default=0, type=click.IntRange(0), show_default=True, help="Global number of the first row."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write the rows to this file, one self-contained page.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write histograms of the stage to this PNG.")
@set_option
def show(config: Path, stage: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Print packed rows of CONFIG: segments, spans with their latents, and where the loss is.

    With --html or --plot these are written instead.
    """
    from lclm_jax.cli.data_show import show_rows

    tree = load_config(config, overrides)
    show_rows(tree, stage_of(tree, stage), **options)


@data.command()
@config_argument
@click.option("--stage", help="Stage whose rows to plan; all by default.")
@click.option("--workers", type=click.IntRange(1), help="Processes; one per core by default.")
@set_option
def index(config: Path, stage: str | None, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Make the row index of the stages of CONFIG before training, which else makes it as it goes.

    Blocks that are stored already are kept, so an interrupted call goes on where it ended.
    """
    from lclm_jax.cli.data_index import build_indices

    tree = load_config(config, overrides)
    build_indices(tree, list(tree.stages) if stage is None else [stage_of(tree, stage)], workers or os.cpu_count() or 1)


@data.command()
@config_argument
@click.option("--stage", help="Stage to measure; the first by default.")
@click.option("--simulate", type=click.FloatRange(1e6), metavar="TOKENS", help="Of a simulated long-tailed corpus.")
@set_option
def budget(config: Path, stage: str | None, simulate: float | None, overrides: tuple[str, ...]) -> None:
    """Measure how rows of CONFIG are filled, and propose a row length and a number of encoder rows.

    Layouts are tried until 98 % of the decoder positions and 90 % of the encoder positions are in use.
    """
    from lclm_jax.cli.data_budget import show_budget

    tree = load_config(config, overrides)
    show_budget(tree, stage_of(tree, stage), simulate)


def stage_of(tree: Config, stage: str | None) -> str:
    """``stage``, by default the first; raises ``click.BadParameter`` if there is no such stage."""
    if stage is None:
        return next(iter(tree.stages))
    if stage not in tree.stages:
        raise click.BadParameter(f"{stage!r} is no stage of {tree.name}; it has {', '.join(tree.stages)}")
    return stage

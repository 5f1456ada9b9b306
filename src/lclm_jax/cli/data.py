"""``lclm data``: prepare corpora, look at packed rows."""

import os
from pathlib import Path

import click

from lclm_jax.cli.options import config_argument, json_option, set_option, write_result
from lclm_jax.config import RunPaths, load_config


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


@data.command()
@config_argument
@click.option("--sample", default=0.02, show_default=True, help="Share of the records that are tokenized again.")
@set_option
@json_option
def validate(config: Path, sample: float, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Check the prepared corpus of CONFIG from end to end; exit with status 1 if anything is wrong with it.

    Every checksum, every record, its lengths, ids and cuts; a sample of the records is tokenized again.
    """
    from lclm_jax.data.storage import Storage
    from lclm_jax.data.validate import validate as defects_of
    from lclm_jax.train.stages import load_tokenizers

    tree = load_config(config, overrides)
    storage = Storage(RunPaths(tree).prepared, tree.data.cache)
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
@click.option("--rows", default=2, show_default=True, help="How many rows.")
@click.option("--from", "first", default=0, show_default=True, help="Global number of the first row.")
@set_option
def show(config: Path, stage: str | None, rows: int, first: int, overrides: tuple[str, ...]) -> None:
    """Print packed rows of CONFIG as text: segments, spans with their latents, and where the loss is."""
    import sys
    import tempfile

    from rich.console import Console

    from lclm_jax.data.loader import Position, make_loader
    from lclm_jax.data.show import render_rows
    from lclm_jax.train.stages import load_tokenizers

    tree = load_config(config, overrides)
    stage = stage or next(iter(tree.stages))
    if stage not in tree.stages:
        raise click.BadParameter(f"{stage!r} is no stage of {config}; it has {', '.join(tree.stages)}")
    settings = tree.stages[stage].model_copy(update={"batch_rows": 1, "microbatches": 1, "steps": first + rows})
    tree = tree.model_copy(update={"stages": {**tree.stages, stage: settings}})
    tokenizers = load_tokenizers(tree)
    colours = sys.stdout.isatty()
    console = Console(soft_wrap=True, markup=colours, highlight=False)
    with (
        tempfile.TemporaryDirectory() as index,
        make_loader(tree, stage, tokenizers, Position(first), index_folder=index) as loader,
    ):
        for number, (batch, stats) in enumerate(loader, first):
            text = render_rows(batch, tokenizers, tree.model, markup=colours)
            console.print(text.replace("row 0", f"row {number}", 1))
            console.print(f"fill: decoder {stats.decoder_fill:.2f}, encoder {stats.encoder_fill:.2f}\n")

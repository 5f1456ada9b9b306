"""What ``lclm data show`` does."""

import sys
import tempfile
from pathlib import Path

import click

from lclm_jax.config import Config
from lclm_jax.data.histograms import plot_histograms
from lclm_jax.data.loader import Position, make_loader
from lclm_jax.data.show import LEGEND, render_rows
from lclm_jax.data.show_html import render_page
from lclm_jax.train.stages import load_tokenizers

_PLOTTED_ROWS = 2000


def show_rows(config: Config, stage: str, rows: int, first: int, html: Path | None, plot: Path | None) -> None:
    """Print ``rows`` packed rows of ``stage`` from ``first`` on, or write them as a page, or plot the stage."""
    from rich.console import Console

    total = config.stages[stage].steps * config.stages[stage].batch_rows
    settings = config.stages[stage].model_copy(update={"batch_rows": 1, "microbatches": 1, "steps": first + rows})
    tree = config.model_copy(update={"stages": {**config.stages, stage: settings}})
    tokenizers = load_tokenizers(tree)
    with (
        tempfile.TemporaryDirectory() as index,
        make_loader(tree, stage, tokenizers, Position(first), index_folder=index) as loader,
    ):
        if plot is not None:
            plot_histograms(loader.index, min(total, _PLOTTED_ROWS), plot)
            click.echo(plot)
        if html is not None:
            batches = ((number, batch) for number, (batch, _) in enumerate(loader, first))
            with html.open("w", encoding="utf-8") as file:
                file.writelines(render_page(batches, tokenizers, tree.model, f"{config.name}, stage {stage}"))
            click.echo(html)
        if plot is not None or html is not None:
            return
        colours = sys.stdout.isatty()
        console = Console(soft_wrap=True, markup=colours, highlight=False)
        if colours:
            console.print(LEGEND)
        for number, (batch, stats) in enumerate(loader, first):
            text = render_rows(batch, tokenizers, tree.model, markup=colours)
            console.print(text.replace("row 0", f"row {number}", 1))
            console.print(f"fill: decoder {stats.decoder_fill:.2f}, encoder {stats.encoder_fill:.2f}\n")

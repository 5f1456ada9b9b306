"""What ``lclm data show`` does."""

import sys
import tempfile
from pathlib import Path

import click

from lclm_jax.config import Config
from lclm_jax.data.histograms import plot_histograms
from lclm_jax.data.loader import Loader, make_loader
from lclm_jax.data.show import LEGEND, render_rows
from lclm_jax.data.show_html import render_page
from lclm_jax.data.sources import Tokenizers
from lclm_jax.train.stages import load_tokenizers

_PLOTTED_ROWS = 2000


def show_rows(config: Config, stage: str, rows: int, first: int, html: Path | None, plot: Path | None) -> None:
    """Print ``rows`` packed rows of ``stage`` from ``first`` on, or write them as a page, or plot the stage."""
    settings = config.stages[stage]
    total = settings.steps * settings.batch_rows
    # Rows after the last step's can be shown too.
    steps = max(settings.steps, -(-(first + rows) // settings.batch_rows))
    tree = config.model_copy(update={"stages": {**config.stages, stage: settings.model_copy(update={"steps": steps})}})
    tokenizers, wanted = load_tokenizers(tree), range(first, first + rows)
    with tempfile.TemporaryDirectory() as index, make_loader(tree, stage, tokenizers, index_folder=index) as loader:
        if plot is not None:
            _plot(loader, min(total, _PLOTTED_ROWS), plot, f"{config.name}, stage {stage}")
        if html is not None:
            pieces = render_page(
                ((number, *loader.row(number)[:2]) for number in wanted), tokenizers, f"{config.name}, stage {stage}"
            )
            with html.open("w", encoding="utf-8") as file:
                file.writelines(pieces)
            click.echo(html)
        if plot is None and html is None:
            _print(tree, loader, tokenizers, wanted)


def _plot(loader: Loader, rows: int, path: Path, title: str) -> None:
    """One picture; of a stage with several ratios one for each."""
    for ratio, index in loader.indices.items():
        own = path if len(loader.indices) == 1 else path.with_stem(f"{path.stem}-{ratio}x")
        plot_histograms(index, rows, own, f"{title}, N = {ratio}")
        click.echo(own)


def _print(config: Config, loader: Loader, tokenizers: Tokenizers, rows: range) -> None:
    from rich.console import Console

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

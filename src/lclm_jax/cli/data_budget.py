"""What ``lclm data budget`` does."""

import click

from lclm_jax.config import Config
from lclm_jax.data.budget import Fill, MakeSources, propose
from lclm_jax.data.sources import make_sources
from lclm_jax.train.stages import load_tokenizers


def show_budget(config: Config, stage: str, simulate: float | None) -> None:
    """Measure row layouts of ``stage``, of ``simulate`` tokens of simulated documents if given, and print the best."""
    make = _sources_of(config, stage, simulate)
    click.echo(f"stage {stage}: planning a sample of its records", err=True)
    tried: list[Fill] = []
    for fill in propose(config, stage, make):
        if not tried:
            click.echo("row_length  encoder_rows  decoder fill  encoder fill  left out")
        tried.append(fill)
        click.echo(
            f"{fill.pack.row_length:10} {fill.pack.encoder_rows:13} {fill.decoder:13.3f} {fill.encoder:13.3f}"
            f" {fill.left_out:9.1%}"
        )
    best = max(tried, key=lambda fill: fill.worth)
    layout = ", ".join(f"{n}: {getattr(best.pack, n)}" for n in ("row_length", "encoder_rows", "encoder_row_length"))
    reached = "" if best.enough else " (the best of those tried; it fills less than asked for)"
    click.echo(f"data.pack: {{{layout}}}{reached}")


def _sources_of(config: Config, stage: str, simulate: float | None) -> MakeSources:
    tokenizers = load_tokenizers(config)
    if simulate is None:
        return lambda changed: make_sources(changed, stage, tokenizers)
    from lclm_jax.bench.simulated import simulated_sources

    return lambda changed: simulated_sources(changed, stage, tokenizers, simulate)

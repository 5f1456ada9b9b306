"""What ``lclm data index`` does."""

from collections.abc import Sequence

import click

from lclm_jax.config import Config
from lclm_jax.data.loader import make_loader
from lclm_jax.data.prebuild import prebuild
from lclm_jax.data.ratios import RatioSchedule
from lclm_jax.pipeline import log_progress, own_run
from lclm_jax.train.stages import load_tokenizers


def build_indices(config: Config, stages: Sequence[str], workers: int) -> None:
    """Make all blocks of the row indices of ``stages`` that are not stored."""
    tokenizers = load_tokenizers(config)
    with own_run(config):
        for stage in stages:
            settings, schedule = config.stages[stage], RatioSchedule(config, stage)
            steps = dict(zip(schedule.ratios, schedule.steps_before(settings.steps), strict=True))
            with make_loader(config, stage, tokenizers) as loader:
                for ratio, index in loader.indices.items():
                    if rows := steps[ratio] * settings.batch_rows:
                        made = prebuild(index, rows, workers, log_progress(unit="rows", scale=1))
                        click.echo(f"{stage}, N = {ratio}: {rows:,} rows, {made} blocks made, in {index.folder}")

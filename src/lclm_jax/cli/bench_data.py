"""``lclm bench data``."""

from pathlib import Path
from typing import Any

import click

from lclm_jax.cli.options import config_argument, json_option, set_option, write_result
from lclm_jax.config import load_config


@click.command("data")
@config_argument
@click.option("--stage", help="Stage whose rows are made; the first by default.")
@click.option("--seconds", default=10.0, show_default=True, help="How long each way is measured.")
@click.option("--step-seconds", default=1.0, show_default=True, help="Train step whose waiting is computed.")
@click.option(
    "--simulate", type=float, metavar="TOKENS", help="Measure the index of a simulated corpus instead: 350e9."
)
@set_option
@json_option
def data(config: Path, stage: str | None, overrides: tuple[str, ...], json_file: Path | None, **options: Any) -> None:
    """Measure how fast batches of CONFIG are made, beside the usual PyTorch loader over Parquet rows.

    From prepared shards with 0, 1 and 2 worker processes, without any cache of records; from raw text with the
    tokenizer in the pipeline; and by a plain loader on the same text. With --simulate: what opening the row index of a
    corpus of any size, finding a row and resuming cost; its documents are made when they are asked for.
    """
    from lclm_jax.bench.data import bench_data
    from lclm_jax.bench.simulated_index import bench_index
    from lclm_jax.train.stages import load_tokenizers

    tree = load_config(config, overrides)
    stage = stage or next(iter(tree.stages))
    if options["simulate"]:
        result: dict[str, Any] = bench_index(tree, stage, options["simulate"])
        for name, value in result.items():
            click.echo(f"{name.replace('_', ' ')}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
        write_result(json_file, result)
        return
    rows = []
    tokenizers = load_tokenizers(tree)
    click.echo(f"{'':36} raw tokens/s   per CPU s   rows/s    CPU  MB read/s  decoder  encoder  starved")
    for pace in bench_data(tree, stage, tokenizers, options["seconds"], options["step_seconds"]):
        rows.append(pace._asdict())
        speed = f"{pace.raw_tokens_per_s:12,.0f} {pace.raw_tokens_per_cpu_s:11,.0f} {pace.rows_per_s:8.1f}"
        use = f"{pace.cpu_share:6.2f} {pace.bytes_read_per_s / 1e6:10.1f}"
        fill = f"{pace.decoder_fill:8.3f} {pace.encoder_fill:8.3f} {pace.starved_share:8.2f}"
        click.echo(f"{pace.way:36} {speed} {use} {fill}")
    plain = rows[-1]["raw_tokens_per_s"]
    ratios = {row["way"]: row["raw_tokens_per_s"] / plain for row in rows[:-1]}
    for way, ratio in ratios.items():
        click.echo(f"{way}: {ratio:.1f} times the plain loader")
    write_result(json_file, {"paces": rows, "ratios": ratios, "step_seconds": options["step_seconds"]})

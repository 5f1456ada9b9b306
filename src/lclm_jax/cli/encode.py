"""``lclm encode``: prompts to the embeddings that a vLLM server is sent."""

from pathlib import Path

import click

from lclm_jax.cli.options import json_option, write_result


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompts", type=click.Path(path_type=Path), required=True, help="JSONL: prompt or messages, id.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write; FILE.jsonl describes it.")
@click.option("--batch-windows", type=click.IntRange(min=1), default=128, show_default=True, help="Encoded at once.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["safetensors", "pt"]),
    default="safetensors",
    show_default=True,
    help="pt: the file of the PyTorch project's vLLM script (needs torch).",
)
@json_option
def encode(model: Path, prompts: Path, out: Path, batch_windows: int, file_format: str, json_file: Path | None) -> None:
    """Write the prompt embeddings of MODEL, an exported folder, latents spliced in: one tensor per prompt.

    Each line of the prompts is an object with prompt (text, or chat messages) or messages, memory tags inside, and
    an optional id. The same command goes on after an interruption.
    """
    from lclm_jax.cli.bar import progress_bar
    from lclm_jax.inference.embeddings import encode_prompts

    with progress_bar() as progress:
        records = encode_prompts(
            model, prompts, out, file_format=file_format, batch_windows=batch_windows, progress=progress
        )
    totals = {name: sum(record[name] for record in records) for name in ("positions", "latents", "encoder_tokens")}
    write_result(json_file, {"prompts": len(records), **totals})
    click.echo(
        f"{out}: {len(records):,} prompts, {totals['positions']:,} positions, {totals['latents']:,} of them latents of"
        f" {totals['encoder_tokens']:,} compressed tokens"
    )

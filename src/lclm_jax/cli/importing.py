"""``lclm import``."""

from pathlib import Path

import click
import yaml


@click.command("import")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--role",
    type=click.Choice(["encoder", "decoder", "lclm"]),
    help="What SOURCE becomes; needed unless it is a complete LCLM.",
)
@click.option("--revision", help="Branch, tag or commit of a repository.")
@click.option(
    "--memory-rows", type=click.Path(path_type=Path), help="Embeddings of the memory tokens: a safetensors file."
)
@click.option("--pad-to", default=1, show_default=True, help="Grow tables to a multiple of this many rows.")
@click.option("--memory-tokens", is_flag=True, help="Add memory tokens to an encoder's tokenizer too.")
def import_command(
    source: str, out: Path, role: str | None, revision: str | None, memory_rows: Path | None, **choices
) -> None:
    """Bring a model into OUT, for a run to start from.

    SOURCE is a folder, or the id of a hub repository (OWNER/NAME): Qwen3, Qwen3-Embedding or Llama weights, or a
    complete LCLM (decoder/, encoder/, adapter/, model_config.json). Only safetensors are read. A decoder's tokenizer
    gets the memory tokens; their embeddings start as the mean of the used rows, or as --memory-rows says (tensor
    memory_rows, one row each for memory_start, memory_end and memory). The configuration keys that a run needs are
    printed, and stored in OUT/lclm.yaml.
    """
    from lclm_jax.interop.hub import resolve_source
    from lclm_jax.interop.importing import ImportOptions, import_model

    folder = resolve_source(source, revision)
    origin = source if revision is None else f"{source}@{revision}"
    options = ImportOptions(memory_rows=memory_rows, **choices)
    keys = import_model(folder, out, role, options, origin)
    click.echo(f"{out}: ready; a run that starts from it needs these keys ({out / 'lclm.yaml'}):")
    click.echo(yaml.safe_dump(keys, sort_keys=False), nl=False)

"""``lclm config``: the resolved tree and the documentation of its keys."""

from pathlib import Path

import click

from lclm_jax.cli.options import config_argument, set_option
from lclm_jax.config import config_hash, describe_keys, dump_config, load_config


@click.group()
def config() -> None:
    """Show the resolved configuration and every key."""


@config.command()
@config_argument
@set_option
def show(config: Path, overrides: tuple[str, ...]) -> None:
    """Print the resolved tree of CONFIG as YAML, with its hash."""
    tree = load_config(config, overrides)
    click.echo(f"# {config}, hash {config_hash(tree)}")
    click.echo(dump_config(tree), nl=False)


@config.command()
@click.argument("prefix", default="")
def keys(prefix: str) -> None:
    """List every key with its default and meaning; PREFIX (such as model.) narrows the list."""
    for name, default, text in describe_keys():
        if name.startswith(prefix):
            click.echo(f"{click.style(name, bold=True)}{f' [{default}]' if default else ''}\n    {text}")

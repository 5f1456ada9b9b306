"""``lclm config``: the resolved tree, documentation of its keys, conversion of YAML files of the PyTorch project."""

import os
from pathlib import Path

import click
import yaml

from lclm_jax.cli.options import cluster_option, config_argument, set_option
from lclm_jax.config import Config, config_hash, describe_keys, dump_config, load_config, read_yaml
from lclm_jax.config.convert import convert_experiment
from lclm_jax.errors import LclmError


@click.group()
def config() -> None:
    """Show the resolved configuration, document its keys, convert YAML files of the PyTorch project."""


@config.command()
@config_argument
@cluster_option
@set_option
def show(config: Path, cluster: Path | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved configuration CONFIG as YAML, with its hash."""
    tree = load_config(config, overrides, cluster)
    click.echo(f"# {config}, hash {config_hash(tree)}")
    click.echo(dump_config(tree), nl=False)


@config.command()
@click.argument("prefix", default="")
def keys(prefix: str) -> None:
    """List every key with its default, its role and its meaning; PREFIX (such as model.) narrows the list.

    Within a run only keys of the roles layout, logging and place may change.
    """
    for name, default, text, role in describe_keys(Config):
        if name.startswith(prefix):
            about = f" [{default}] {role}" if role else ""
            click.echo(f"{click.style(name, bold=True)}{about}\n    {text}")


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    default="configs/base/recipe.yaml",
    show_default=True,
    help="Configuration that OUT is based on: data, mixtures and lengths of stages, which FILE lacks.",
)
def convert(file: Path, out: Path, recipe: Path) -> None:
    """Convert FILE, an experiment YAML of the PyTorch project, to the configuration OUT.

    Keys of FILE without a counterpart are listed with the reason; unknown keys are an error.
    """
    if out.exists():
        raise click.UsageError(f"{out} exists; name a new file, or delete it")
    values, left_out = convert_experiment(read_yaml(file), read_yaml(recipe))
    base = {"base": Path(os.path.relpath(recipe, out.parent)).as_posix()}
    out.write_text(yaml.safe_dump(base | values, sort_keys=False, width=120), encoding="utf-8")
    try:
        load_config(out)
    except LclmError:
        out.unlink()
        raise
    for name, reason in left_out:
        click.echo(f"left out {name}: {reason}")
    click.echo(out)

"""Options that several commands share."""

import json
import os
import signal
from pathlib import Path

import click

from lclm_jax.config import Config, apply_environment, load_config
from lclm_jax.paths import local_copy, store_errors, to_path


class Place(click.ParamType):
    """A file or folder: a local path, or a URL of an object store.

    Args:
        copied: take a copy of a remote folder on this machine, for what reads whole models.
    """

    name = "path"

    def __init__(self, copied: bool = False):
        self._copied = copied

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The place that ``value`` names."""
        place = to_path(value)
        try:
            return local_copy(place) if self._copied else place
        except FileNotFoundError:
            self.fail(f"{value} holds no file", param, ctx)


config_argument = click.argument("config", type=Place())

run_argument = click.argument("run", type=Place())

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, for example stages.stage2.steps=100.",
)

cluster_option = click.option(
    "--cluster",
    type=Place(),
    help="YAML file merged over CONFIG: mesh, microbatches, remat and flags of a cluster (see configs/clusters).",
)

json_option = click.option(
    "--json",
    "json_file",
    type=Place(),
    help="Also write the result to this file as JSON; - for standard output.",
)


def load_for_devices(config: Path, overrides: tuple[str, ...], cluster: Path | None) -> Config:
    """The configuration of a command that uses devices; sets its environment, so call it before JAX is imported."""
    tree = load_config(config, overrides, cluster)
    set_environment(tree)
    return tree


def set_environment(config: Config) -> None:
    """Set the environment of ``config``, before anything imports JAX; raises ``LclmError`` if XLA would not take it."""
    apply_environment(config.environment, os.environ)
    if "XLA_FLAGS" in config.environment:
        from lclm_jax.xla_flags import check_xla_flags

        check_xla_flags()


def write_result(json_file: Path | None, result: object) -> None:
    """Write ``result`` where ``--json`` says."""
    if json_file is None:
        return
    if str(json_file) == "-":
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    from lclm_jax.files import write_json

    write_json(json_file, result)


def load_run(run: Path) -> Config:
    """The configuration stored in the folder of a run, or in a YAML; raises ``ConfigError``."""
    with store_errors(run):
        is_folder = run.is_dir()
    config = load_config(run / "config.yaml" if is_folder else run)
    return config.model_copy(update={"run_dir": str(run)}) if is_folder else config


def default_resume() -> str:
    """``--resume`` where it is not given: LCLM_RESUME, else ``required`` in a job that was restarted, else ``auto``."""
    restarts = (os.environ.get(name, "") for name in ("LCLM_RESTARTS", "SLURM_RESTART_COUNT"))
    return os.environ.get("LCLM_RESUME") or ("required" if any(one not in ("", "0") for one in restarts) else "auto")


def exit_for_restart_on_signals() -> None:
    """From now on SIGTERM and SIGUSR1 end this process at once with status 75: nothing is lost, a rerun resumes.

    Otherwise a job that is preempted while it starts would look like one that crashed. Training installs handlers of
    its own as soon as there is something to save.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    click.echo(f"{signal.Signals(number).name}: stopped outside training; rerun the same command", err=True)
    os._exit(os.EX_TEMPFAIL)

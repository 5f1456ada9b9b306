"""Options that several commands share."""

import os
import signal
from pathlib import Path

import click

from lclm_jax.config import Config, apply_environment, load_config

config_argument = click.argument("config", type=click.Path(path_type=Path))

run_argument = click.argument("run", type=click.Path(path_type=Path))

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, for example stages.stage2.steps=100.",
)

cluster_option = click.option(
    "--cluster",
    type=click.Path(path_type=Path),
    help="YAML file merged over CONFIG: mesh, microbatches, remat and flags of a cluster (see configs/clusters).",
)

json_option = click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write the result to this file as JSON."
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
    if json_file is not None:
        from lclm_jax.files import write_json

        write_json(json_file, result)


def load_run(run: Path) -> Config:
    """The configuration stored in the folder of a run, or in a YAML; raises ``ConfigError``."""
    path = run / "config.yaml" if run.is_dir() else run
    config = load_config(path)
    return config.model_copy(update={"run_dir": str(run)}) if run.is_dir() else config


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

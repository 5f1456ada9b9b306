"""``lclm pipeline`` and ``lclm train``."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from lclm_jax.cli.options import (
    cluster_option,
    config_argument,
    json_option,
    load_for_devices,
    set_option,
    start_again_when_asked,
    write_result,
)
from lclm_jax.config import Config


@click.command()
@config_argument
@cluster_option
@set_option
@json_option
def pipeline(config: Path, cluster: Path | None, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Run CONFIG from corpus to report: prepare, train every stage, evaluate, export, generate, report.

    What is done is kept: after an interruption the same command goes on, and when all is done it says so.
    """
    tree = load_for_devices(config, overrides, cluster)

    from lclm_jax.pipeline import run_pipeline

    with _memory_table(tree):
        report = run_pipeline(tree)
    write_result(json_file, report)
    click.echo(
        f"recovered share of the context gain {report['recovered_share']:.3f}"
        f" ± {report['recovered_share_standard_error']:.3f}\n"
        f"verbatim token accuracy from latents {report['verbatim_token_accuracy']:.4f}"
        f" ± {report['verbatim_token_accuracy_standard_error']:.4f}\n"
        f"wall time {report['wall_seconds'] / 60:.1f} min, peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB"
    )


@click.command()
@config_argument
@click.option("--stage", help="Train this stage alone; the one before it must be finished.")
@click.option("--from", "source", metavar="RUN[@STAGE[@STEP]]", help="Start from this run's parameters (init.run).")
@click.option("--force", is_flag=True, help="Go on from a checkpoint although settings or data have changed since.")
@click.option("--profile", metavar="FIRST-LAST", help="Trace these steps of each stage for XProf or Perfetto.")
@click.option("--dump-hlo", type=click.Path(path_type=Path), help="Write the compiled train step's HLO to this folder.")
@cluster_option
@set_option
def train(
    config: Path,
    stage: str | None,
    source: str | None,
    force: bool,
    cluster: Path | None,
    overrides: tuple[str, ...],
    **look: Any,
) -> None:
    """Train all stages of CONFIG, each from the last one's weights; interrupted stages go on from their checkpoint.

    The corpus must be prepared: see `lclm data prepare`. SIGTERM or Ctrl-C saves and exits with status 75. Several
    processes that run this command form one run: see docs/processes.md. If one is lost the others exit with status 75.
    Messages and exit codes: see docs/operations.md.
    """
    start_again_when_asked()
    overrides = (*overrides, f"init.run={source}") if source else overrides
    if look["profile"]:
        overrides = (*overrides, f'train.profile_steps="{look["profile"]}"')
    if look["dump_hlo"]:  # before JAX starts: XLA reads its flags once
        dump = f"--xla_dump_to={look['dump_hlo']} --xla_dump_hlo_module_re=.*train_step.*"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}".strip()
    tree = load_for_devices(config, overrides, cluster)

    import jax

    from lclm_jax.eval.probe import Probe
    from lclm_jax.interop.init_from_hf import imported_params
    from lclm_jax.ops.run_folder import own_run
    from lclm_jax.parallel import join_processes
    from lclm_jax.train.core.stages import train as train_stages

    with ExitStack() as run:
        run.enter_context(join_processes(tree.train.processes))
        if jax.process_index() == 0:
            run.enter_context(own_run(tree, force))
        run.enter_context(_memory_table(tree))
        train_stages(tree, stage, read_imports=imported_params, make_probe=Probe, force=force)


@contextmanager
def _memory_table(tree: Config) -> Iterator[None]:
    """Show what a step holds if the devices' memory does not suffice; the error goes on its way."""
    from lclm_jax.train.supervise.out_of_memory import OutOfMemory

    try:
        yield
    except OutOfMemory as error:
        import jax
        from rich.console import Console

        from lclm_jax.parallel import make_mesh
        from lclm_jax.plan.memory import estimate
        from lclm_jax.report.plan_tables import memory_table
        from lclm_jax.train.core.stages import resolve

        mesh = dict(make_mesh(tree.mesh).shape)
        capacity = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        held = estimate(resolve(tree), error.stage, mesh)
        Console(stderr=True).print(memory_table(held, error.stage, mesh, capacity))
        raise

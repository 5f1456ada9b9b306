"""``lclm pipeline``, ``lclm train`` and ``lclm tune``."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from lclm_jax.cli.checks import preflight, wants_preflight
from lclm_jax.cli.options import (
    cluster_option,
    config_argument,
    default_resume,
    exit_for_restart_on_signals,
    json_option,
    load_for_devices,
    set_option,
    write_result,
)
from lclm_jax.config import Config


@click.command()
@config_argument
@cluster_option
@set_option
@json_option
def pipeline(config: Path, cluster: Path | None, overrides: tuple[str, ...], json_file: Path | None) -> None:
    """Run all steps of CONFIG, from corpus to report: prepare, train every stage, evaluate, export, generate, report.

    Finished steps are kept: after an interruption, rerun the same command to resume.
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
@click.option("--stage", help="Train this stage alone; the one before it must have finished.")
@click.option(
    "--from",
    "source",
    metavar="RUN[@STAGE[@STEP]]",
    help="Start from the parameters of this run (init.run), not from what init names.",
)
@click.option(
    "--resume",
    type=click.Choice(["required", "auto", "never"]),
    default=default_resume,
    help="required: run_dir must hold this run; never: it must not. Default: LCLM_RESUME, else auto, but required after"
    " a restart (LCLM_RESTARTS or SLURM_RESTART_COUNT above 0).",
)
@click.option("--force", is_flag=True, help="Resume from a checkpoint even if settings or data have changed since.")
@click.option("--profile", metavar="FIRST-LAST", help="Profile these steps of each stage, for XProf or Perfetto.")
@click.option(
    "--dump-hlo", type=click.Path(path_type=Path), help="Write the HLO of the compiled train step to this folder."
)
@cluster_option
@set_option
def train(
    config: Path,
    stage: str | None,
    source: str | None,
    force: bool,
    cluster: Path | None,
    overrides: tuple[str, ...],
    **look,
) -> None:
    """Train all stages of CONFIG, each from the weights of the one before; resume interrupted stages from checkpoints.

    The corpus must be prepared: see `lclm data prepare`. SIGTERM or Ctrl-C saves a checkpoint and exits with status 75.
    Several processes that run this command form one run; if one of them is lost, the others exit with status 75.
    """
    exit_for_restart_on_signals()
    if source:  # of all weights: nothing else that the configuration starts from counts
        overrides = (*overrides, "init.encoder=null", "init.decoder=null", "init.lclm=null", f"init.run={source}")
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
        if wants_preflight():
            preflight(tree)
        if jax.process_index() == 0:
            run.enter_context(own_run(tree, force, resume=look["resume"]))
        run.enter_context(_memory_table(tree))
        train_stages(tree, stage, read_imports=imported_params, make_probe=Probe, force=force)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Rows: messages, compression_prompt and target, or context, question and answer.",
)
@click.option(
    "--train",
    "parts",
    multiple=True,
    required=True,
    type=click.Choice(["adapter", "encoder", "decoder", "encoder_lora", "decoder_lora"]),
    help="Part that trains; may be given several times. adapter: with a pooling that has parameters.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the tuned export; default: MODEL-tuned.")
@click.option("--epochs", default=3.0, show_default=True, type=click.FloatRange(0, min_open=True), help="At most.")
@click.option(
    "--held-out",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.9, min_open=True),
    help="Share of the rows that is measured and not trained on.",
)
@click.option(
    "--patience", default=3, show_default=True, type=click.IntRange(1), help="Measurements without a new best: enough."
)
@click.option("--answers", default=64, show_default=True, type=click.IntRange(0), help="Held-out questions answered.")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Of an answer.")
@set_option
@json_option
def tune(
    model: Path,
    data: Path,
    parts: tuple[str, ...],
    out: Path | None,
    overrides: tuple[str, ...],
    json_file: Path | None,
    **options,
) -> None:
    """Tune MODEL, an exported or imported LCLM, on the rows of a task, and export the step with the best held-out loss.

    Rates, row layout and steps follow from the model and the rows; --set changes any of them. Answers to held-out
    questions are scored by exact match and F1, with their context compressed and raw, before and after. The run's own
    files are in OUT.run; after an interruption, rerun the same command to resume.
    """
    from lclm_jax.tune.run import lines_of
    from lclm_jax.tune.run import tune as run_tuning
    from lclm_jax.tune.settings import TuneOptions, parts_of

    target = out or model.with_name(f"{model.name}-tuned")
    result = run_tuning(model, data, target, TuneOptions(parts_of(parts), overrides=overrides, **options))
    write_result(json_file, result)
    for line in lines_of(result):
        click.echo(line)
    click.echo(target)


@contextmanager
def _memory_table(tree: Config) -> Iterator[None]:
    """Show what a step keeps in memory if it runs out on the devices, and raise the error again."""
    from lclm_jax.train.supervise.out_of_memory import OutOfMemory

    try:
        yield
    except OutOfMemory as error:
        import jax
        from rich.console import Console

        from lclm_jax.parallel import make_mesh
        from lclm_jax.plan.memory import estimate
        from lclm_jax.report.plan_tables import memory_table
        from lclm_jax.text.run_tokenizers import resolve

        mesh = dict(make_mesh(tree.mesh).shape)
        capacity = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        held = estimate(resolve(tree), error.stage, mesh)
        Console(stderr=True).print(memory_table(held, error.stage, mesh, capacity))
        raise

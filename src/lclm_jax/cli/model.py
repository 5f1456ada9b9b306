"""``lclm eval``, ``export``, ``generate`` and ``golden``: what is done with a trained model."""

import sys
from pathlib import Path
from typing import BinaryIO

import click

from lclm_jax.cli.options import json_option, load_run, run_argument, write_result


@click.command("eval")
@run_argument
@click.option("--split", type=click.Choice(["held_out", "validation"]), default="held_out", show_default=True)
@click.option("--stage", help="Stage to measure; the last that has a checkpoint by default.")
@click.option("--step", type=int, help="Step of the stage; its newest checkpoint by default.")
@click.option("--ema", is_flag=True, help="The averages of the parameters (train.optimizer.ema_decay).")
@json_option
def evaluate(run: Path, split: str, stage: str | None, step: int | None, ema: bool, json_file: Path | None) -> None:
    """Measure context gain and verbatim repetition of RUN (a run's folder or its YAML)."""
    from lclm_jax.eval.run import evaluate as measure
    from lclm_jax.parallel import make_mesh
    from lclm_jax.train.stages import latest_checkpoint, load_params, load_tokenizers

    config = load_run(run)
    stage, step = latest_checkpoint(config, stage, step)
    mesh = make_mesh(config.mesh)
    result = measure(config, load_params(config, stage, step, mesh, ema), load_tokenizers(config), split, mesh)
    write_result(json_file, {"stage": stage, "step": step, **result})
    click.echo(f"{stage} step {step}, {split}, {result['held_out_tokens']:,} tokens")
    for name, estimate in result["loss_nats"].items():
        click.echo(f"loss, {name:<8} {_pm(estimate)} nats per token")
    click.echo(f"recovered share {_pm(result['recovered_share'])}")
    click.echo(f"verbatim token accuracy {_pm(result['verbatim_token_accuracy'])}")


@click.command()
@run_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--stage", help="Stage to export; the last that has a checkpoint by default.")
@click.option("--step", type=int, help="Step of the stage; its newest checkpoint by default.")
@click.option("--ema", is_flag=True, help="The averages of the parameters (train.optimizer.ema_decay).")
@click.option(
    "--lora",
    type=click.Choice(["merge", "peft"]),
    default="merge",
    show_default=True,
    help="Add LoRA updates to their kernels, or write them to OUT/lora for peft.",
)
def export(run: Path, out: Path, dtype: str, stage: str | None, step: int | None, ema: bool, lora: str) -> None:
    """Write the model of RUN (a run's folder or its YAML, or an imported LCLM) to OUT in the Hugging Face layout."""
    from lclm_jax.interop.runs import export_folder, export_run

    if (run / "model_config.json").is_file():
        if stage or step is not None or ema:
            raise click.UsageError(f"{run} is an imported model: it has no stages, steps or averages")
        export_folder(run, out, dtype, lora)
        click.echo(f"{out}: {run}, {dtype}")
        return
    done = export_run(load_run(run), out, dtype, stage, step, lora, ema)
    click.echo(f"{out}: {done[0]} step {done[1]}, {dtype}")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", help="The prompt; compressed text stands between <|memory_start|> and <|memory_end|>.")
@click.option("--file", "file", type=click.File("rb"), help="Read the prompt from a file (-: stdin).")
@click.option("--chat/--raw", default=True, show_default=True, help="Wrap the prompt as a user's message, or not.")
@click.option("--max-new-tokens", default=128, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def generate(
    model: Path,
    prompt: str | None,
    file: BinaryIO | None,
    chat: bool,
    **sampling,
) -> None:
    """Answer one prompt with MODEL, an exported folder; the answer is printed as it is made.

    Without --prompt or --file the prompt is read from standard input.
    """
    from lclm_jax.text.memory import split_memory

    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --file exclude each other; give one")
    if prompt is None:
        prompt = _read_prompt(file or sys.stdin.buffer)
    if not prompt.strip():
        raise ValueError("the prompt is empty; give at least one word")
    split_memory(prompt)  # before the model is loaded, and with places counted in what the user wrote

    from lclm_jax.inference.generate import Generator
    from lclm_jax.inference.sampling import Sampling

    generator = Generator.from_folder(model)
    request = [{"role": "user", "content": prompt}] if chat else prompt
    for piece in generator.stream(request, Sampling(**sampling)):
        click.echo(piece, nl=False)
    click.echo()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def golden(directory: Path, json_file: Path | None) -> None:
    """Run the golden cases of DIRECTORY; one line per case and quantity; exit status 1 if any is off."""
    from lclm_jax.inference.generate import golden_greedy
    from lclm_jax.interop.golden import run_golden

    checks = []
    for check in run_golden(directory, golden_greedy):
        checks.append(check)
        click.echo(str(check))
    write_result(json_file, [check._asdict() for check in checks])
    failed = sum(not check.ok for check in checks)
    click.echo(f"{len(checks) - failed} of {len(checks)} within tolerance")
    if failed:
        sys.exit(1)


def _read_prompt(file: BinaryIO) -> str:
    """The text of ``file``; says on a terminal that it waits for it."""
    if file.isatty():
        click.echo("Type the prompt; end it with Ctrl-D on a line of its own.", err=True)
    try:
        return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt is not UTF-8 text ({error.reason} at byte {error.start}); convert it, for example with iconv"
        ) from None


def _pm(estimate: dict) -> str:
    error = estimate["standard_error"]
    return f"{estimate['value']:.4f}" + (f" ± {error:.4f}" if error is not None else "")

"""``lclm eval``, ``import``, ``export``, ``generate`` and ``encode``: commands about a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import yaml

from lclm_jax.cli.options import Place, json_option, load_run, run_argument, write_result
from lclm_jax.cli.streams import need_output, read_text
from lclm_jax.errors import LclmError

if TYPE_CHECKING:
    from lclm_jax.inference.generate import Generator
    from lclm_jax.inference.prompts import Prompt
    from lclm_jax.inference.sampling import Sampling

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="File of stored latents: windows that it has are not encoded again, and it gets the others.",
)


ratio_option = click.option(
    "--ratio",
    metavar="N[,N...]|auto",
    help="Tokens per latent of all memory spans or of each in turn, multiples of the model's; auto: the model chooses.",
)
budget_option = click.option(
    "--budget", type=click.FloatRange(0, 1, min_open=True), help="Latents per token that --ratio auto keeps to."
)


@click.command("eval")
@run_argument
@click.option("--split", type=click.Choice(["held_out", "validation"]), default="held_out", show_default=True)
@click.option("--stage", help="Stage to evaluate; default: the last that has a checkpoint.")
@click.option("--step", type=int, help="Step of the stage; default: its newest checkpoint.")
@click.option("--ema", is_flag=True, help="Use the exponential moving average (train.optimizer.ema_decay).")
@json_option
def evaluate(run: Path, split: str, stage: str | None, step: int | None, ema: bool, json_file: Path | None) -> None:
    """Measure context gain and verbatim repetition of RUN (the folder of a run, or its YAML)."""
    from lclm_jax.eval.run import evaluate as measure
    from lclm_jax.parallel import make_mesh
    from lclm_jax.report.formatting import estimate as estimate_text
    from lclm_jax.text.run_tokenizers import load_tokenizers
    from lclm_jax.train.checkpoints.run_params import latest_checkpoint, load_params

    config = load_run(run)
    stage, step = latest_checkpoint(config, stage, step)
    mesh = make_mesh(config.mesh)
    result = measure(config, load_params(config, stage, step, mesh, ema), load_tokenizers(config), split, mesh)
    write_result(json_file, {"stage": stage, "step": step, **result})
    click.echo(f"{stage} step {step}, {split}, {result['held_out_tokens']:,} tokens")
    for name, estimate in result["loss_nats"].items():
        click.echo(f"loss, {name:<8} {estimate_text(estimate)} nats per token")
    click.echo(f"recovered share {estimate_text(result['recovered_share'])}")
    click.echo(f"verbatim token accuracy {estimate_text(result['verbatim_token_accuracy'])}")


@click.command("fit-ratios")
@run_argument
@click.argument("model", type=Place(copied=True))
@click.option(
    "--margin",
    type=click.FloatRange(0),
    default=0.02,
    show_default=True,
    help="Nats per token that a span's ratio may cost the text after it.",
)
@click.option(
    "--examples", type=click.IntRange(2), default=512, show_default=True, help="Spans that the head is fitted on."
)
@json_option
def fit_ratios(run: Path, model: Path, margin: float, examples: int, json_file: Path | None) -> None:
    """Fit the head that chooses a ratio for every span of MODEL, an export of RUN, which trained several.

    It is written into MODEL, for generate and encode with --ratio auto.
    """
    from lclm_jax.eval.ratio_head import FitSettings, fit_ratio_head
    from lclm_jax.report.formatting import estimate as estimate_text

    head, found = fit_ratio_head(load_run(run), model, FitSettings(margin, examples))
    head.save(model)
    write_result(json_file, found)
    shares = ", ".join(f"{ratio}x {share:.0%}" for ratio, share in found["targets"].items())
    click.echo(f"{found['spans']} held-out spans; targets: {shares}; the head finds {found['right']:.0%} of them")
    for ratio, row in found["static"].items():
        static, chosen, difference = (
            estimate_text(row[name]) for name in ("loss_nats", "adaptive_loss_nats", "difference_nats")
        )
        click.echo(
            f"{row['latents_per_token']:.4f} latents per token: {static} nats with {ratio}x for all; chosen"
            f" ({row['adaptive_latents_per_token']:.4f}): {chosen}, difference {difference}"
        )


@click.command()
@run_argument
@click.argument("out", type=Place())
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--stage", help="Stage to export; default: the last that has a checkpoint.")
@click.option("--step", type=int, help="Step of the stage; default: its newest checkpoint.")
@click.option("--ema", is_flag=True, help="Use the exponential moving average (train.optimizer.ema_decay).")
@click.option(
    "--lora",
    type=click.Choice(["merge", "peft"]),
    default="merge",
    show_default=True,
    help="Merge LoRA into the weights, or write it to OUT/lora for peft.",
)
@click.option("--push", metavar="OWNER/NAME", help="Upload OUT to this hub repository; it is made if it is not there.")
@click.option("--public", is_flag=True, help="Let everyone see a repository that --push makes.")
def export(run: Path, out: Path, dtype: str, lora: str, push: str | None, public: bool, **checkpoint) -> None:
    """Write the model of RUN (the folder of a run, its YAML, or an imported LCLM) to OUT in the Hugging Face layout."""
    from lclm_jax.interop.hub import check_repository, push_folder
    from lclm_jax.interop.runs import export_folder, export_run

    if push is not None:
        check_repository(push)
    if (run / "model_config.json").is_file():
        if any(checkpoint.values()) or checkpoint["step"] is not None:
            raise click.UsageError(f"{run} is an imported model: it has no stages, steps or averages")
        export_folder(run, out, dtype, lora)
        click.echo(f"{out}: {run}, {dtype}")
    else:
        done = export_run(load_run(run), out, dtype, lora=lora, **checkpoint)
        click.echo(f"{out}: {done[0]} step {done[1]}, {dtype}")
    if push is not None:
        click.echo(push_folder(out, push, public))


@click.command()
@click.argument("model", type=Place(copied=True))
@click.option("--prompt", help="The prompt; text between <|memory_start|> and <|memory_end|> is compressed.")
@click.option("--file", "file", type=click.File("rb"), help="Read the prompt from a file (- for stdin).")
@click.option(
    "--chat/--raw", default=True, show_default=True, help="Wrap the prompt as a user message, or pass it as it is."
)
@click.option("--max-new-tokens", default=128, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0 decodes greedily.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--compress-reasoning",
    "every",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Compress what is written each time so many tokens are complete, up to </think> if the tokenizer has it.",
)
@store_option
@ratio_option
@budget_option
def generate(
    model: Path,
    prompt: str | None,
    file: BinaryIO | None,
    chat: bool,
    every: int | None,
    store: Path | None,
    **options,
) -> None:
    """Answer one prompt with MODEL, an exported folder; the answer is printed token by token.

    Without --prompt or --file the prompt is read from standard input.
    """
    from lclm_jax.inference.prompts import check_characters
    from lclm_jax.text.memory_tags import split_memory

    need_output("the answer")
    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --file exclude each other; give one")
    if prompt is None:
        prompt = read_text(file, "prompt")
    if not prompt.strip():
        raise LclmError("the prompt is empty; give at least one word")
    check_characters(prompt, "the prompt")
    split_memory(prompt)  # before the model is loaded, and with places counted in what the user wrote

    from lclm_jax.inference.generate import Generator
    from lclm_jax.inference.sampling import Sampling
    from lclm_jax.inference.span_ratios import parse_ratios

    ratios = options.pop("ratio"), options.pop("budget")
    if every is not None and ratios != (None, None):
        raise click.UsageError("--compress-reasoning takes the model's ratio; leave --ratio out")
    settings = Sampling(**options)
    generator = Generator.from_folder(model, store=store)
    generator.ratios = parse_ratios(*ratios, model, generator.model)
    request = [{"role": "user", "content": prompt}] if chat else prompt
    if every is not None:
        _reason(generator, request, settings, every)
        return
    for piece in generator.stream(request, settings):
        click.echo(piece, nl=False)
    click.echo()


def _reason(generator: "Generator", request: "Prompt", settings: "Sampling", every: int) -> None:
    """Print the answer to ``request``, its reasoning compressed as it is written, and to stderr what that saved."""
    from lclm_jax.inference.reasoning import reason
    from lclm_jax.inference.reasoning_policy import ReasoningPolicy

    end = generator.decoder_tokenizer.token_id("</think>")
    policy = ReasoningPolicy(every, reasoning_ends=frozenset(() if end is None else (end,)))
    (row,) = reason(generator, [generator.example(request)], settings, policy)
    stopped = row.generated[-1] in generator.stops(settings)
    click.echo(generator.decoder_tokenizer.decode(row.generated[: len(row.generated) - stopped]))
    click.echo(
        f"{len(row.generated)} new tokens in {row.positions - len(row.prompt.tokens)} positions: effective ratio"
        f" {row.effective_ratio:.2f}, {row.compressions} compressions of {row.compressed_tokens} tokens,"
        f" {row.positions_saved} positions saved, {row.encoded_again} tokens encoded again",
        err=True,
    )


@click.command("import")
@click.argument("source")
@click.argument("out", type=Place())
@click.option(
    "--role",
    type=click.Choice(["encoder", "decoder", "lclm"]),
    help="What SOURCE is used as; required unless it is a complete LCLM.",
)
@click.option("--revision", help="Branch, tag or commit of a hub repository.")
@click.option(
    "--memory-rows", type=click.Path(path_type=Path), help="Safetensors file with the embeddings of the memory tokens."
)
@click.option("--pad-to", default=1, show_default=True, help="Pad embedding tables to a multiple of this many rows.")
@click.option("--memory-tokens", is_flag=True, help="Add the memory tokens to the tokenizer of an encoder, too.")
@click.option("--ratio", type=click.IntRange(min=1), help="Of an older LCLM that does not say it: tokens per latent.")
@click.option("--window", type=click.IntRange(min=1), help="The same: tokens of a window.")
@click.option("--pooling", type=click.Choice(["mean", "concat", "eos"]), help="The same: pooling.")
@click.option("--mask", type=click.Choice(["causal", "bidirectional"]), help="The same: mask inside a window.")
@click.option("--overlap", type=click.IntRange(min=0), help="The same: context tokens beside a window.")
@click.option("--adapter", type=click.Choice(["mlp", "attn_mlp", "mlp_attn"]), help="The same: adapter.")
@click.option("--adapter-layers", type=click.IntRange(min=1), help="The same: attention layers of the adapter.")
def import_command(
    source: str, out: Path, role: str | None, revision: str | None, memory_rows: Path | None, **choices
) -> None:
    """Import a model into the folder OUT, for a run to start from.

    SOURCE is a folder, or the id of a hub repository (OWNER/NAME): Qwen3, Qwen3-Embedding, Llama, Qwen2 or Mistral
    weights, or a complete LCLM (decoder/, encoder/, adapter/, model_config.json; in older ones llm/, embedder/,
    projectors/). Only safetensors files are read. What is not supported is refused by its name. The memory tokens
    are added to the tokenizer of a decoder; their embeddings are initialised to the mean of the rows in use, or taken
    from --memory-rows (tensor memory_rows: one row each for memory_start, memory_end and memory). The configuration
    keys that a run needs are printed, and stored in OUT/lclm.yaml.
    """
    from lclm_jax.interop.foreign.older_layout import OPTIONS
    from lclm_jax.interop.hub import resolve_source
    from lclm_jax.interop.import_hf import ImportOptions, import_model

    folder = resolve_source(source, revision)
    origin = source if revision is None else f"{source}@{revision}"
    compression = {name: value for name in OPTIONS if (value := choices.pop(name)) is not None}
    options = ImportOptions(memory_rows=memory_rows, compression=compression, **choices)
    keys = import_model(folder, out, role, options, origin)
    click.echo(f"{out} is ready; a run that starts from it needs these keys ({out / 'lclm.yaml'}):")
    click.echo(yaml.safe_dump(keys, sort_keys=False), nl=False)


@click.command()
@click.argument("model", type=Place(copied=True))
@click.option(
    "--prompts", type=click.Path(path_type=Path), required=True, help="JSON lines with prompt or messages, and id."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write; OUT.jsonl describes its tensors."
)
@click.option(
    "--batch-windows",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Windows that are encoded at once.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["safetensors", "pt"]),
    default="safetensors",
    show_default=True,
    help="pt: the format of the PyTorch project's vLLM script (needs torch).",
)
@store_option
@ratio_option
@budget_option
@json_option
def encode(model: Path, prompts: Path, out: Path, file_format: str, json_file: Path | None, **options) -> None:
    """Write prompt embeddings of MODEL, an exported folder, with the latents spliced in: one tensor per prompt.

    Each line of the prompts is an object with prompt (text or chat messages) or messages, which may hold memory tags,
    and an optional id. After an interruption, rerun the same command to resume.
    """
    from lclm_jax.cli.progress_bar import progress_bar
    from lclm_jax.inference.embeddings import Reading, encode_prompts

    how = Reading(**options)
    with progress_bar() as progress:
        records = encode_prompts(model, prompts, out, file_format=file_format, reading=how, progress=progress)
    totals = {name: sum(record[name] for record in records) for name in ("positions", "latents", "encoder_tokens")}
    write_result(json_file, {"prompts": len(records), **totals})
    click.echo(
        f"{out}: {len(records):,} prompts, {totals['positions']:,} positions, {totals['latents']:,} of them latents for"
        f" {totals['encoder_tokens']:,} compressed tokens"
    )

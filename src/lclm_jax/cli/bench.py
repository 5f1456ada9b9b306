"""``lclm bench``."""

import sys
from pathlib import Path

import click

from lclm_jax.cli.options import config_argument, json_option, set_option, write_result
from lclm_jax.config import Config, load_config
from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject


@click.group()
def bench() -> None:
    """Benchmark kernels, the train step and generation (beside PyTorch), the data path and a server."""


@bench.command("kernels")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["attention", "pooling", "cross_entropy"]),
    help="Benchmark this kernel alone; may be given several times.",
)
@json_option
def kernels(only: tuple[str, ...], json_file: Path | None) -> None:
    """Benchmark every kernel beside the alternatives of libraries, after checking all of them against float32.

    On an accelerator: TFLOP/s or GB/s of forward and of forward + backward, and the fraction of what a large matrix
    product or a large copy reaches in the same run. On a CPU: small shapes, checked for correctness and not timed.
    """
    from lclm_jax.bench.kernels import KERNELS, bench_kernels

    result = bench_kernels(only or tuple(KERNELS))
    write_result(json_file, result)
    _show_kernels(result)
    if not all(row.get("right", True) for row in result["rows"]):
        raise LclmError("a kernel differs from float32 by more than rounding: see the rows marked WRONG")


@bench.command("step")
@config_argument
@click.option("--stage", help="Stage whose train step is timed; default: the last.")
@click.option("--steps", default=8, show_default=True, help="Steps per repetition, each on a batch of its own.")
@click.option(
    "--repeats", default=5, show_default=True, help="Repetitions; on a CPU, those of PyTorch alternate with ours."
)
@click.option("--torch/--no-torch", default=True, show_default=True, help="Compare with PyTorch if it is installed.")
@click.option("--profile", type=click.Path(path_type=Path), help="Profile one more repetition into this new folder.")
@set_option
@json_option
def step(config: Path, overrides: tuple[str, ...], json_file: Path | None, **options) -> None:
    """Time the real train step of CONFIG on real packed batches, from random weights; no training state is written.

    The corpus must be prepared: see `lclm data prepare`. The comparison is Qwen3 of transformers with the batching of
    the public PyTorch implementation, from the same weights and on the same examples.
    """
    from lclm_jax.bench.step import bench_step

    result = bench_step(load_config(config, overrides), **options)
    write_result(json_file, result)
    _show_step(result)


def _show_kernels(result: JsonObject) -> None:
    peaks, case = result["peaks"], None
    click.echo(f"{_place(result['surroundings'])}\nmeasured: {result['measures']}")
    if peaks:
        click.echo(f"peaks: {peaks['matmul_flops'] / 1e12:.0f} TFLOP/s, {peaks['copy_bytes'] / 1e9:.0f} GB/s")
    for row in result["rows"]:
        if case != (case := f"{row['kernel']}: {row['shape']}"):
            click.echo(f"\n{case}")
        click.echo(f"  {row['way']:24} {_outcome(row)}")


def _outcome(row: JsonObject) -> str:
    """What came of one way of computing a case."""
    if "refused" in row:
        return f"refused: {row['refused']}"
    parts = [] if row.get("right", True) else ["WRONG"]
    if "error" in row:
        parts.append(f"error {row['error']:.1e}, of gradients {row['gradient_error']:.1e}")
    times = [("forward", row.get("forward")), ("with backward", row.get("both"))]
    parts += [f"{name} {_rate(speed)}" for name, speed in times if speed is not None]
    return "; ".join(parts)


def _rate(speed: dict[str, float]) -> str:
    parts = [f"{speed['seconds'] * 1e3:.2f} ms"]
    if "tflops" in speed:
        parts.append(f"{speed['tflops']:.0f} TFLOP/s ({speed['share_of_matmul']:.0%})")
    if "gbytes" in speed:
        parts.append(f"{speed['gbytes']:.0f} GB/s ({speed['share_of_copy']:.0%})")
    return ", ".join(parts)


def _show_step(result: JsonObject) -> None:
    rates = result["tokens_per_s"]
    click.echo(_place(result["surroundings"]))
    low, high = result["spread_seconds"]
    click.echo(f"stage {result['stage']}: {result['seconds_per_step']:.3f} s a step ({low:.3f} to {high:.3f})")
    click.echo(", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items()))
    click.echo(f"MFU {result['mfu']:.1%} of {result['peak_flops'] / 1e12:.2f} TFLOP/s ({result['peak_is']})")
    memory = result.get("peak_device_bytes") or result.get("resident_bytes", 0)
    click.echo(f"first step with compilation {result['compile_seconds']:.1f} s, memory {memory / 1e9:.2f} GB")
    other = result.get("pytorch")
    if other is None:
        return
    low, high = other["spread_seconds"]
    spread = f"{min(other['ratios']):.2f} to {max(other['ratios']):.2f}"
    click.echo(
        f"PyTorch: {other['seconds_per_step']:.3f} s a step ({low:.3f} to {high:.3f})\n"
        f"ours is {other['ratio']:.2f} times as fast ({spread})\n"
        f"  of which padding saved {other['of_which_padding_saved']:.2f}, arithmetic"
        f" {other['of_which_arithmetic']:.2f}\n"
        f"loss of the first batch: ours {result['first_loss']:.5f}, PyTorch {other['first_loss']:.5f}"
    )


def _place(surroundings: JsonObject) -> str:
    """Devices and versions, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in surroundings["versions"].items())
    return f"{surroundings['devices']} x {surroundings['device']} ({surroundings['cores']} cores); {versions}"


@bench.command("generate")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--length", "lengths", multiple=True, type=click.IntRange(1), help="Positions of a prompt; repeatable.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Prompts answered together.")
@click.option("--new-tokens", default=64, show_default=True, type=click.IntRange(2), help="Tokens of an answer.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Turns of each side.")
@click.option(
    "--torch/--no-torch", default=True, show_default=True, help="Compare with transformers if it is installed."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: as the decoder is stored.")
@json_option
def generate(folder: Path, lengths: tuple[int, ...], json_file: Path | None, batch: int, **options) -> None:
    """Time greedy answers of FOLDER, an exported or imported model, to prompts without memory spans.

    In turn with it `generate` of transformers answers the same prompts from the same weights of the decoder. Lengths:
    128, 512 and 2048 positions, as far as the decoder has them, if none is given.
    """
    from lclm_jax.bench.generate import bench_generate

    result = bench_generate(folder, lengths, batch, **options)
    write_result(json_file, result)
    _show_generate(result)


def _show_generate(result: JsonObject) -> None:
    click.echo(_place(result["surroundings"]))
    click.echo(f"{result['batch']} prompts at once, {result['new_tokens']} new tokens, {result['dtype']}")
    for row in result["rows"]:
        sides = [name for name in ("ours", "transformers") if name in row]
        for name in sides:
            one = row[name]
            click.echo(
                f"  {row['positions']:>6} positions, {name:12}: first token {one['first_seconds'] * 1e3:7.1f} ms, then"
                f" {one['token_seconds'] * 1e3:6.2f} ms each; {one['tokens_per_s']:,.1f} tokens/s"
            )
        if "ratio" in row:
            low, high = min(row["ratios"]), max(row["ratios"])
            click.echo(
                f"         ours is {row['ratio']:.2f} times as fast ({low:.2f} to {high:.2f}), to the first token"
                f" {row['first_ratio']:.2f}; {row['same_tokens']:.0%} of the tokens are equal"
            )


@bench.command("data")
@config_argument
@click.option("--stage", help="Stage whose batches are made; default: the first.")
@click.option("--seconds", default=10.0, show_default=True, help="Duration of each measurement.")
@click.option(
    "--step-seconds", default=1.0, show_default=True, help="Duration of the train step for which waiting is computed."
)
@click.option(
    "--prepare",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MEGABYTES",
    help="Measure the preparation of this much of each collection instead, beside the bare tokenizer.",
)
@click.option(
    "--simulate",
    type=float,
    metavar="TOKENS",
    help="Measure the row index of a simulated corpus instead, for example of 350e9 tokens.",
)
@set_option
@json_option
def data(config: Path, stage: str | None, overrides: tuple[str, ...], json_file: Path | None, **options) -> None:
    """Measure how fast batches of CONFIG are made, beside a plain PyTorch-style loader over Parquet rows.

    From prepared shards with 0, 1 and 2 worker processes and no cache of records; from raw text with the tokenizer in
    the pipeline; and with a plain loader on the same text. With --prepare: how fast the corpus is prepared, in CPU
    time, and how many bytes a token takes. With --simulate: the cost of opening the row index of a corpus of any size,
    of finding a row and of resuming; its documents are generated on demand.
    """
    from lclm_jax.bench.data import bench_data
    from lclm_jax.bench.simulated.index import bench_index
    from lclm_jax.text.run_tokenizers import load_tokenizers

    tree = load_config(config, overrides)
    stage = stage or next(iter(tree.stages))
    if options["prepare"]:
        _show_preparation(tree, int(options["prepare"] * 1e6), json_file)
        return
    if options["simulate"]:
        result: JsonObject = bench_index(tree, stage, options["simulate"])
        for name, value in result.items():
            click.echo(f"{name.replace('_', ' ')}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
        write_result(json_file, result)
        return
    rows = []
    tokenizers = load_tokenizers(tree)
    click.echo(f"{'':36} raw tokens/s   per CPU s   rows/s    CPU  MB read/s  decoder  encoder  starved")
    for pace in bench_data(tree, stage, tokenizers, options["seconds"], options["step_seconds"]):
        rows.append(pace._asdict())
        speed = f"{pace.raw_tokens_per_s:12,.0f} {pace.raw_tokens_per_cpu_s:11,.0f} {pace.rows_per_s:8.1f}"
        use = f"{pace.cpu_share:6.2f} {pace.bytes_read_per_s / 1e6:10.1f}"
        fill = f"{pace.decoder_fill:8.3f} {pace.encoder_fill:8.3f} {pace.starved_share:8.2f}"
        click.echo(f"{pace.way:36} {speed} {use} {fill}")
    plain = rows[-1]["raw_tokens_per_s"]
    ratios = {row["way"]: row["raw_tokens_per_s"] / plain for row in rows[:-1]}
    for way, ratio in ratios.items():
        click.echo(f"{way}: {ratio:.1f} times the plain loader")
    write_result(json_file, {"paces": rows, "ratios": ratios, "step_seconds": options["step_seconds"]})


def _show_preparation(tree: Config, max_bytes: int, json_file: Path | None) -> None:
    from lclm_jax.bench.preparation import bench_preparation
    from lclm_jax.data.prepare.run import train_missing_tokenizer

    train_missing_tokenizer(tree)
    pace = bench_preparation(tree, max_bytes)
    click.echo(f"{pace.documents:,} documents, {pace.text_bytes:,} bytes of text, {pace.tokens:,} tokens")
    for name, seconds in (("bare tokenizer", pace.bare_seconds), ("preparation", pace.seconds)):
        click.echo(f"{name:20} {pace.tokens / seconds:10,.0f} tokens a CPU second")
    click.echo(f"{'ratio':20} {pace.ratio:10.2f}")
    for name, seconds in pace.phases.items():
        click.echo(f"  {name:18} {seconds / pace.seconds:10.0%} of the preparation")
    for name, size in pace.sizes.items():
        click.echo(f"{name:20} {size / pace.tokens:10.3f} bytes a token")
    write_result(json_file, pace.as_json())


@bench.command("serve")
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    default=Path(sys.executable),
    help="Interpreter of an environment with vLLM and lclm-serving; default: this one.",
)
@click.option(
    "--shape",
    type=click.Choice(["demo", "smollm2"]),
    default="smollm2",
    show_default=True,
    help="Without MODELS: shape of the untrained ones that are made.",
)
@click.option("--ratio", "ratios", multiple=True, type=int, default=(4, 16), show_default=True, help="Their ratios.")
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(min=16),
    default=(1024, 2048, 4096, 8192),
    show_default=True,
    help="Tokens of a document; may be given several times.",
)
@click.option("--new-tokens", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Documents of each length.")
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Measure peaks of memory, on three servers more."
)
@click.option(
    "--option", "options", multiple=True, help="One more argument of the server, such as --option=--dtype=bfloat16."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("bench-serve"),
    show_default=True,
    help="Where untrained models, stores and logs of servers go.",
)
@json_option
def serve(
    models: tuple[Path, ...], shape: str, ratios: tuple[int, ...], folder: Path, json_file: Path | None, **wanted
) -> None:
    """Time answers of `vllm serve` to raw text, to compressed text, and from stored latents, side by side.

    MODELS are exports; without any, untrained ones are made, as the values of weights change no time. Every way has
    documents that are new to the server; second questions are about the same document. Beside the speed of compressed
    text stands the ratio of the operations that raw and compressed prompts need.
    """
    from lclm_jax.bench.serve import ServeBench, bench_serve
    from lclm_jax.bench.untrained import untrained_export

    folder.mkdir(parents=True, exist_ok=True)
    chosen = list(models) or [untrained_export(shape, ratio, folder / f"{shape}-{ratio}x") for ratio in ratios]
    result = bench_serve(chosen, ServeBench(**wanted), folder)
    write_result(json_file, result)
    _show_serve(result)


def _show_serve(result: JsonObject) -> None:
    from lclm_jax.bench.serve import WAYS

    for model in result["models"]:
        click.echo(f"{model['model']}: {model['ratio']}x, windows of {model['window']}; vLLM {model['vllm']}")
        click.echo(
            f"{'tokens':>8} {'first token':28} {'seconds':>8} {'least':>8} {'most':>8} {'tokens/s':>9} {'positions':>9}"
        )
        for row in model["rows"]:
            for way, name in WAYS.items():
                one = row[way]
                low, high = one["spread_s"]
                click.echo(
                    f"{row['tokens']:8,} {name:28} {one['first_token_s']:8.3f} {low:8.3f} {high:8.3f}"
                    f" {one['tokens_per_s']:9.1f} {one['positions']:9,}"
                )
            click.echo(
                f"{'':8} compressed is {row['speedup']:.2f} times as fast as raw text, {row['share_of_flops']:.2f} of"
                f" what operations promise ({row['flops']:.2f}); stored latents {row['stored_speedup']:.2f} times as"
                " fast as compressed"
            )
        for way, peak in model.get("memory", {}).items():
            click.echo(
                f"{'':8} {WAYS[way]}: {peak['grown_bytes'] / 1e6:,.0f} MB above {peak['before_bytes'] / 1e6:,.0f} MB"
            )

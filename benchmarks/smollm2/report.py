"""Recovered share and verbatim accuracy of a run against the text that it has seen.

    python benchmarks/smollm2/report.py RUN OUT

Every checkpoint of the run's only stage that is still there is measured on held-out text, and so is the model that it
started from. ``OUT/curve.json`` keeps what was measured: run the command again when there are more checkpoints. From it
``OUT/report.md`` and ``OUT/curve.png`` are written.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from lclm_jax.api import load_run
from lclm_jax.config import Config
from lclm_jax.eval.run import evaluate
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.parallel import make_mesh
from lclm_jax.report.document import Section, Text, markdown, plain_table
from lclm_jax.report.formatting import estimate
from lclm_jax.report.plots import COLOURS, save, styled
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.train.checkpoints.provenance import checkpoints_folder
from lclm_jax.train.checkpoints.run_params import load_params
from lclm_jax.types import JsonObject

GOAL = 0.5
LOWEST = -0.1
"""Where the plot ends: untrained latents can be far worse than no context, which would leave no room for the rest."""


def main() -> None:
    """Measure what is not measured yet, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("out", type=Path, help="folder of the report")
    parser.add_argument("--ema", action="store_true", help="measure the averages of the parameters")
    parser.add_argument("--examples", type=int, help="held-out documents to measure on, instead of eval.examples")
    options = parser.parse_args()
    config = resolve(load_run(options.run))
    if options.examples:
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"examples": options.examples})})
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "curve.json"
    points: list[JsonObject] = json.loads(path.read_text()) if path.is_file() else []
    for step in steps_of(config):
        if step not in {point["step"] for point in points}:
            points.append(measure(config, step, options.ema))
            path.write_text(json.dumps(sorted(points, key=lambda point: point["step"]), indent=1))
    points.sort(key=lambda point: point["step"])
    plot(points, options.out / "curve.png")
    (options.out / "report.md").write_text(markdown("SmolLM2-135M as an LCLM: the curve", sections(config, points)))


def steps_of(config: Config) -> list[int]:
    """0 and the steps whose checkpoints are there."""
    (stage,) = config.stages
    found = (int(path.name) for path in checkpoints_folder(config, stage).iterdir() if path.name.isdigit())
    return sorted({0, *found})


def measure(config: Config, step: int, ema: bool) -> JsonObject:
    """Estimates at ``step``, and how much text the run had read by then."""
    (stage,) = config.stages
    mesh = make_mesh(config.mesh)
    params = load_params(config, stage, step, mesh, ema) if step else imported_params(config, mesh)
    found = evaluate(config, params, load_tokenizers(config), "held_out", mesh)
    names = ("loss_nats", "gain_nats", "recovered_share", "verbatim_token_accuracy", "held_out_tokens", "files")
    return {"step": step, "tokens": tokens_until(config, stage, step), **{name: found[name] for name in names}}


def tokens_until(config: Config, stage: str, step: int) -> int:
    """Raw tokens of the steps before ``step``."""
    path = Path(config.run_dir) / "stages" / stage / "metrics.jsonl"
    lines = (json.loads(line) for line in path.read_text().splitlines()) if step else ()
    return sum({line["step"]: line["raw_tokens"] for line in lines if line["step"] < step}.values())


def plot(points: list[JsonObject], path: Path) -> None:
    """Share and accuracy against tokens, with standard errors."""
    with styled():
        figure, axis = plt.subplots()
        for name, colour in (("recovered_share", COLOURS["latents"]), ("verbatim_token_accuracy", COLOURS["raw"])):
            values = np.array([point[name]["value"] for point in points])
            errors = np.array([point[name]["standard_error"] or 0 for point in points])
            label = name.replace("_", " ")
            axis.errorbar(
                [point["tokens"] for point in points], values, 2 * errors, color=colour, label=label, marker="o"
            )
        axis.axhline(GOAL, color=COLOURS["ink"], linewidth=0.8, linestyle=":")
        axis.set(xlabel="raw tokens that training has read", ylabel="share", ylim=(LOWEST, None))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.legend()
        save(figure, path)


def sections(config: Config, points: list[JsonObject]) -> list[Section]:
    """The report."""
    settings = config.eval
    rows = [
        [
            str(point["step"]),
            f"{point['tokens']:,}",
            *(estimate(point["loss_nats"][name]) for name in ("none", "latents", "raw")),
            estimate(point["recovered_share"]),
            estimate(point["verbatim_token_accuracy"]),
        ]
        for point in points
    ]
    header = ["step", "raw tokens read", "loss, no context", "loss, latents", "loss, raw", "recovered share"]
    caption = (
        f"Nats per token of {settings.continuation_tokens} tokens after {settings.context_tokens} tokens of context,"
        f" and verbatim accuracy on spans of {settings.repetition_tokens}, on"
        f" {points[0]['files']['continuation']} held-out documents; standard errors are over documents."
        " Step 0: before training."
    )
    said = [Text(line) for line in (gain_in_errors(points[-1]), extrapolation(points))]
    return [Section("Curve", [plain_table([*header, "verbatim accuracy"], rows, caption), *said])]


def gain_in_errors(point: JsonObject) -> str:
    """How surely latents are better than no context."""
    gain = point["gain_nats"]["latents"]
    errors = gain["value"] / gain["standard_error"] if gain["standard_error"] else math.nan
    return f"At step {point['step']} latents save {estimate(gain)} nats per token: {errors:.1f} standard errors."


def extrapolation(points: list[JsonObject]) -> str:
    """Where a line of the share over the logarithm of the tokens reaches the goal."""
    trained = [point for point in points if point["tokens"]]
    if len(trained) < 3:
        return "An extrapolation needs three checkpoints."
    shares = [point["recovered_share"]["value"] for point in trained]
    slope, start = np.polyfit(np.log2([point["tokens"] for point in trained]), shares, 1)
    if slope <= 0:
        return "The share does not rise with the logarithm of the tokens."
    needed = 2 ** ((GOAL - start) / slope)
    line = f"A line over the logarithm of the tokens gains {slope:.3f} per doubling"
    return f"{line}; it reaches {GOAL} at {needed:.1e} tokens."


if __name__ == "__main__":
    main()

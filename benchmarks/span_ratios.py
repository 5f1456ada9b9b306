"""Does a ratio chosen for every span beat one for all? ``python benchmarks/span_ratios.py OUT [--seeds 6]``.

For every seed six models are trained on made-up documents of different density
(``configs/ablate/tiny/recall-base.yaml``): one at each ratio, one that draws a ratio for each step, one that draws it
for each span, and one that does so for as many steps as the three of a single ratio had together. All are scored on the
same held-out spans. Of the last two the head is fitted, and its choices are compared, at the latents per token of each
single ratio, with the same model at that ratio and with the model trained at it. Written: ``OUT/results.json`` and a
table with 95 % intervals over seeds, of paired differences. What is there is not trained or scored again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import lclm_jax
from lclm_jax.ablate.statistics import mean_interval
from lclm_jax.eval.ratio_head import FitSettings, fit_ratio_head, measure_split
from lclm_jax.files import write_text
from lclm_jax.inference.generate import Generator
from lclm_jax.types import JsonObject

BASE = Path(__file__).parents[1] / "configs" / "ablate" / "tiny" / "recall-base.yaml"
RATIOS = (4, 8, 16)
LONG = "by span, all steps"
VARIANTS = {
    **{f"static {ratio}": [f"model.ratio={ratio}"] for ratio in RATIOS},
    "by step": [f"stages.train.ratios={[*RATIOS]}"],
    "by span": [f"model.span_ratios={[*RATIOS]}"],
    LONG: [f"model.span_ratios={[*RATIOS]}"],
}


def measure(out: Path, name: str, seed: int, steps: int | None) -> JsonObject:
    """Held-out losses by ratio of one trained model, and of the one trained by span what its choices are worth."""
    home = out / f"{name.replace(',', '').replace(' ', '-')}-seed-{seed}"
    done = home / "measured.json"
    if done.is_file():
        found: JsonObject = json.loads(done.read_text())
        return found
    steps = lclm_jax.load_config(BASE).stages["train"].steps if steps is None else steps
    length = [f"stages.train.steps={steps * len(RATIOS) if name == LONG else steps}"]
    common = [
        f"seed={seed}",
        f"run_dir={home}",
        f"data.prepared={out / 'data'}",
        f"tokenizer.decoder={out / 'tokenizer'}",
    ]
    config = lclm_jax.load_config(BASE, [*VARIANTS[name], *length, *common, "tokenizer.vocab_size=null"])
    lclm_jax.train_stages(config)
    folder = lclm_jax.export_run(config)
    generator = Generator.from_folder(folder)
    ratios = RATIOS if name.startswith("by") else (config.model.ratio,)
    spans = measure_split(config, generator, "held_out", config.eval.examples, ratios)
    found = {"loss_nats": dict(zip(map(str, ratios), spans.loss_SN.mean(axis=0).tolist(), strict=True))}
    if name.startswith("by span"):
        head, found["choices"] = fit_ratio_head(config, folder, FitSettings())
        head.save(folder)
    write_text(done, json.dumps(found, indent=1))
    return found


def differences(results: dict[str, JsonObject]) -> dict[str, list[float]]:
    """Comparison -> nats per token that the first model loses more than the second, by seed."""
    rows: dict[str, list[float]] = {}
    for one in results.values():
        for ratio in map(str, RATIOS):
            static = one[f"static {ratio}"]["loss_nats"][ratio]
            found = {f"by step at {ratio}, less static {ratio}": one["by step"]["loss_nats"][ratio] - static}
            for model in ("by span", LONG):
                alike = one[model]["loss_nats"][ratio]
                chosen = one[model]["choices"]["static"][ratio]["adaptive_loss_nats"]["value"]
                found |= {
                    f"{model} at {ratio}, less static {ratio}": alike - static,
                    f"{model}, chosen, less all at {ratio}, equal budget": chosen - alike,
                    f"{model}, chosen, less static {ratio}, equal budget": chosen - static,
                }
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    return rows


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, help="steps of a model; default: those of the configuration")
    options = parser.parse_args()
    out = options.out.resolve()
    lclm_jax.prepare_data(lclm_jax.load_config(BASE, [f"run_dir={out}"]))
    results = {
        str(seed): {name: measure(out, name, seed, options.steps) for name in VARIANTS} for seed in range(options.seeds)
    }
    lines = ["| comparison | nats per token | by seed |", "|---|---|---|"]
    for name, values in differences(results).items():
        mean, half = mean_interval(values, 0.95) if len(values) > 1 else (float(np.mean(values)), float("nan"))
        lines.append(f"| {name} | {mean:+.3f} ± {half:.3f} | {', '.join(f'{value:+.3f}' for value in values)} |")
    write_text(out / "results.json", json.dumps(results, indent=1))
    write_text(out / "results.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

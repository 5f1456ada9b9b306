"""What does it cost to compress reasoning while it is written? ``python benchmarks/running_sums.py OUT [--seeds 4]``.

For every seed two tiny models are trained on running sums (``configs/ablate/tiny/running-sums-base.yaml``): one on
replies whose steps are all raw, one with the first steps of half of the replies in latents. Both answer the same new
questions of ``LENGTHS`` terms, up to four times as many as they were trained on, with their reasoning kept raw and
with each span of it compressed as soon as it is complete. Counted: right results, right steps until the first wrong
one, and decoder positions. Written: ``OUT/results.json`` and ``OUT/results.md`` with 95 % intervals over seeds. What is
there is not trained or asked again.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

import lclm_jax
from lclm_jax.ablate.statistics import mean_interval
from lclm_jax.data.demo import running_sums
from lclm_jax.files import write_text
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.reasoning import reason
from lclm_jax.inference.reasoning_policy import ReasoningPolicy
from lclm_jax.inference.sampling import Sampling
from lclm_jax.types import JsonObject

BASE = Path(__file__).parents[1] / "configs" / "ablate" / "tiny" / "running-sums-base.yaml"
LENGTHS = (8, 16, 32, 64, 128)
"""Terms of a question; models are trained on up to 32."""
QUESTIONS = 64
"""Of each length."""
MODELS = {"raw": {"sums": 1.0}, "compressed": {"sums": 0.5, "compressed": 0.5}}
POLICIES = {
    "raw": ReasoningPolicy(tokens=10**9),
    "compressed": ReasoningPolicy(tokens=4 * running_sums.STEPS),
}


def ask(generator: Generator, policy: ReasoningPolicy, length: int) -> JsonObject:
    """Shares of right results and steps, and decoder positions, of new questions of ``length`` terms."""
    draws = random.Random(f"questions {length}")  # noqa: S311 - drawn data, no secret
    asked = [running_sums.draw(draws, length) for _ in range(QUESTIONS)]
    tokenizer = generator.decoder_tokenizer
    prompts = [
        tokenizer.render_chat([{"role": "user", "content": running_sums.question(terms)}], add_generation_prompt=True)
        for terms in asked
    ]
    sampling = Sampling(max_new_tokens=4 * length + 4)
    rows = reason(generator, [generator.example(prompt) for prompt in prompts], sampling, policy)
    right_results, right_steps = [], []
    for row, terms in zip(rows, asked, strict=True):
        wanted = running_sums.solution(terms).split()
        said = tokenizer.decode(np.array(row.generated, np.int32)).split()[: len(wanted)]
        same = [one == other for one, other in zip(said, wanted, strict=False)] + [False]
        right_results.append(all(same[: len(wanted)]) and len(said) == len(wanted))
        right_steps.append(min(same.index(False), length) / length)
    return {
        "right_results": float(np.mean(right_results)),
        "right_steps": float(np.mean(right_steps)),
        "prompt_positions": float(np.mean([len(row.prompt.tokens) for row in rows])),
        "largest_positions": float(np.mean([row.largest for row in rows])),
        "new_tokens": float(np.mean([len(row.generated) for row in rows])),
    }


def measure(out: Path, name: str, seed: int, steps: int | None) -> JsonObject:
    """``ask`` by policy and length, of one trained model."""
    home = out / f"{name}-seed-{seed}"
    done = home / "measured.json"
    if done.is_file():
        found: JsonObject = json.loads(done.read_text())
        return found
    length = [] if steps is None else [f"stages.train.steps={steps}"]
    config = lclm_jax.load_config(
        BASE,
        [
            f"seed={seed}",
            f"run_dir={home}",
            f"data.prepared={out / 'data'}",
            f"tokenizer.decoder={out / 'tokenizer'}",
            "tokenizer.vocab_size=null",
            f"stages.train.mixture={json.dumps({'sums': 0, 'compressed': 0} | MODELS[name])}",
            *length,
        ],
    )
    lclm_jax.train_stages(config)
    generator = Generator.from_folder(lclm_jax.export_run(config))
    asked = {
        policy: {str(terms): ask(generator, POLICIES[policy], terms) for terms in LENGTHS}
        for policy in POLICIES
        if policy == "raw" or "compressed" in MODELS[name]
    }
    write_text(done, json.dumps(asked, indent=1))
    return asked


def table(results: list[dict[str, JsonObject]]) -> list[str]:
    """Lines of Markdown: a row for each model, policy and length."""
    lines = [
        "| trained on | reasoning | terms | results right | steps right | positions at most | without compression |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        for policy in results[0][model]:
            for terms in map(str, LENGTHS):
                of = [one[model][policy][terms] for one in results]
                share = {key: interval([row[key] for row in of]) for key in ("right_results", "right_steps")}
                most, whole = (np.mean([row[key] for row in of]) for key in ("largest_positions", "new_tokens"))
                whole += np.mean([row["prompt_positions"] for row in of])
                lines.append(
                    f"| {model} | {policy} | {terms} | {share['right_results']} | {share['right_steps']} |"
                    f" {most:.0f} | {whole:.0f} |"
                )
    return lines


def interval(values: list[float]) -> str:
    """Mean of ``values`` with its 95 % interval over seeds."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    mean, half = mean_interval(values, 0.95)
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    """Train, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, help="steps of a model; default: those of the configuration")
    options = parser.parse_args()
    out = options.out.resolve()
    lclm_jax.prepare_data(lclm_jax.load_config(BASE, [f"run_dir={out}"]))
    results = [{name: measure(out, name, seed, options.steps) for name in MODELS} for seed in range(options.seeds)]
    write_text(out / "results.json", json.dumps(results, indent=1))
    write_text(out / "results.md", "\n".join(table(results)) + "\n")


if __name__ == "__main__":
    main()

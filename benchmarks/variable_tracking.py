"""What does it cost to compress reasoning while it is written? ``python benchmarks/variable_tracking.py OUT``.

For every seed two tiny models are trained to follow chains of variables (``configs/ablate/tiny/variable-tracking-
base.yaml``): one on replies whose steps are all raw, one with the first steps of half of the replies in latents. Both
answer the same new questions of ``LENGTHS`` links, up to four times as many as they were trained on, with their
reasoning kept raw and with each span of it compressed as soon as it is complete. Counted: chains followed to their
end, steps until the first wrong one, and decoder positions. Written: ``OUT/results.json`` and ``OUT/results.md`` with
95 % intervals over seeds. What is there is not trained or asked again.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np

import lclm_jax
from lclm_jax.ablate.statistics import mean_interval
from lclm_jax.data.demo import variable_tracking
from lclm_jax.files import write_text
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.reasoning import reason
from lclm_jax.inference.reasoning_policy import ReasoningPolicy
from lclm_jax.inference.sampling import Sampling
from lclm_jax.types import JsonObject

BASE = Path(__file__).parents[1] / "configs" / "ablate" / "tiny" / "variable-tracking-base.yaml"
LENGTHS = (4, 8, 16, 32)
"""Links of a chain; models are trained on up to 8."""
QUESTIONS = 64
"""Of each length."""
MODELS = {"raw": 0.0, "compressed": 0.5}
"""Share of the chains whose first steps are in latents."""
LOOKED_UP = 0.1
"""Share of look-ups, and of look-ups in latents, in the stage of chains."""
POLICIES = {
    "raw": ReasoningPolicy(tokens=10**9),
    "compressed": ReasoningPolicy(tokens=variable_tracking.STEP_TOKENS * variable_tracking.STEPS),
}


def ask(generator: Generator, policy: ReasoningPolicy, links: int) -> JsonObject:
    """Shares of chains followed to their end and of right steps, and decoder positions, of new chains."""
    draws = random.Random(f"chains {links}")  # noqa: S311 - drawn data, no secret
    asked = [variable_tracking.draw(draws, links, max(LENGTHS)) for _ in range(QUESTIONS)]
    tokenizer = generator.decoder_tokenizer
    prompts = [
        tokenizer.render_chat([{"role": "user", "content": chain.question}], add_generation_prompt=True)
        for chain in asked
    ]
    sampling = Sampling(max_new_tokens=variable_tracking.STEP_TOKENS * links + 1)
    rows = reason(generator, [generator.example(prompt) for prompt in prompts], sampling, policy)
    right = []
    for row, chain in zip(rows, asked, strict=True):
        said = tokenizer.decode(np.array(row.generated, np.int32)).split(",")
        wanted = [step.removesuffix(",") for step in chain.steps]
        right.append(next((place for place, step in enumerate(wanted) if said[place : place + 1] != [step]), links))
    return {
        "ends_found": float(np.mean([count == links for count in right])),
        "right_steps": float(np.mean(right)) / links,
        "prompt_positions": float(np.mean([len(row.prompt.tokens) for row in rows])),
        "largest_positions": float(np.mean([row.largest for row in rows])),
        "new_tokens": float(np.mean([len(row.generated) for row in rows])),
    }


def configured(out: Path, run: Path, seed: int, *changes: str) -> lclm_jax.Config:
    """The base with data and tokenizer of ``out``, for the folder ``run``."""
    places = [f"run_dir={run}", f"data.prepared={out / 'data'}", f"tokenizer.decoder={out / 'tokenizer'}"]
    return lclm_jax.load_config(BASE, [f"seed={seed}", *places, "tokenizer.vocab_size=null", *changes])


def measure(out: Path, name: str, seed: int) -> JsonObject:
    """``ask`` by policy and length, of one trained model."""
    home = out / f"{name}-seed-{seed}"
    done = home / "measured.json"
    if done.is_file():
        found: JsonObject = json.loads(done.read_text())
        return found
    share = MODELS[name]
    rest = 1 - 2 * LOOKED_UP
    parts = {"lookups": LOOKED_UP, "latents": LOOKED_UP, "chains": rest * (1 - share), "compressed": rest * share}
    mixture = json.dumps({source: part for source, part in parts.items() if part})
    config = configured(out, home, seed, f"stages.chains.mixture={mixture}")
    if not home.is_dir():  # the first stages are the same for both models: they are trained once
        shared = out / f"lookups-seed-{seed}"
        for stage in ("lookups", "latents"):
            lclm_jax.train_stages(configured(out, shared, seed), stage)
        shutil.copytree(shared / "stages", home / "stages")
    lclm_jax.train_stages(config)
    generator = Generator.from_folder(lclm_jax.export_run(config))
    asked = {
        policy: {str(links): ask(generator, POLICIES[policy], links) for links in LENGTHS}
        for policy in POLICIES
        if policy == "raw" or MODELS[name]
    }
    write_text(done, json.dumps(asked, indent=1))
    return asked


def table(results: list[dict[str, JsonObject]]) -> list[str]:
    """Lines of Markdown: a row for each model, policy and length."""
    lines = [
        "| trained on | reasoning | links | end found | steps right | positions at most | without compression |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        for policy in results[0][model]:
            for links in map(str, LENGTHS):
                of = [one[model][policy][links] for one in results]
                share = {key: interval([row[key] for row in of]) for key in ("ends_found", "right_steps")}
                most, whole = (np.mean([row[key] for row in of]) for key in ("largest_positions", "new_tokens"))
                whole += np.mean([row["prompt_positions"] for row in of])
                lines.append(
                    f"| {model} | {policy} | {links} | {share['ends_found']} | {share['right_steps']} |"
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
    options = parser.parse_args()
    out = options.out.resolve()
    lclm_jax.prepare_data(lclm_jax.load_config(BASE, [f"run_dir={out}"]))
    results = [{name: measure(out, name, seed) for name in MODELS} for seed in range(options.seeds)]
    write_text(out / "results.json", json.dumps(results, indent=1))
    write_text(out / "results.md", "\n".join(table(results)) + "\n")


if __name__ == "__main__":
    main()

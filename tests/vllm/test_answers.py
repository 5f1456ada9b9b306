"""vLLM gives the prompt ids and the greedy tokens of the JAX generator, for every published setting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny_exports import PROMPTS, SETTINGS, tiny_export

from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling

ROOT = Path(__file__).parents[2]
NEW_TOKENS = 32
SMALL = {"block_size": 32, "max_num_batched_tokens": 64, "enable_prefix_caching": True}
"""Spans are cut by chunks of the prefill, and blocks are reused."""
PLAIN = {"enable_prefix_caching": False}


def expected(folder):
    """Name -> prompt ids and 32 greedy tokens of the JAX generator."""
    generator = Generator.from_folder(folder)
    examples = [generator.example(prompt) for prompt in PROMPTS.values()]
    answers = generator.generate_examples(examples, Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    return {
        name: {"prompt": example.tokens.tolist(), "answer": list(answer.ids)}
        for name, example, answer in zip(PROMPTS, examples, answers, strict=True)
    }


def offline(folder, **options):
    """The same of vLLM, from a process of its own."""
    out = folder.with_suffix(".json")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.vllm.offline", str(folder), str(out), json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_the_jax_generator(name, tmp_path):
    folder = tiny_export(name, tmp_path / name)
    wanted = expected(folder)
    assert len({tuple(one["answer"]) for one in wanted.values()}) == len(PROMPTS)
    options = SMALL if list(SETTINGS).index(name) % 2 == 0 else PLAIN
    found = offline(folder, dtype="float32", **options)
    for prompt, one in wanted.items():
        assert found[prompt]["prompt"] == one["prompt"], prompt
        assert found[prompt]["answer"] == one["answer"], prompt

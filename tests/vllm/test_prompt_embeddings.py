"""A real vLLM on the decoder that we export answers our prompt embeddings as we do, and as transformers does.

``make test-vllm`` runs this in an environment of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import vllm
from lclm_jax.config import RunPaths, load_config
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.interop.export import export_model
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.run_tokenizers import resolve

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
# vLLM's attention on CPUs takes heads of 32 and more.
TOWER = (
    "{vocab_size: 512, hidden_size: 64, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 32, mlp_size: 128,"
    " rope_theta: 1e4, max_positions: 512}"
)
STAGES = ("base", "stage2")
SMALL = [
    "corpus.max_bytes=400000",
    f"model.encoder={TOWER}",
    f"model.decoder={TOWER}",
    *(f"stages.{name}=null" for name in load_config(DEMO).stages if name not in STAGES),
    *(
        f"stages.{name}={{steps: 4, batch_rows: 4, lr: {{adapter: 1e-4, encoder: 1e-4, decoder: 1e-4}}, min_lr: 1e-5}}"
        for name in STAGES
    ),
]
NEW_TOKENS = 32
SPAN = "<|memory_start|>{}<|memory_end|>"
# As many tokens in each: prompts that differ in nothing but the values of their latents.
SPANS = (
    "import os\nimport sys\n\n\ndef main():\n    return os",
    "import sys\nimport os\n\n\ndef main():\n    return sys",
)
PROMPTS = [
    {"id": "text", "prompt": "def read(path):\n    "},
    {"id": "span", "prompt": SPAN.format(SPANS[0]) + "\nGo on: "},
    {"id": "its twin", "prompt": SPAN.format(SPANS[1]) + "\nGo on: "},
    {"id": "long", "prompt": SPAN.format("for line in file:\n    total += len(line)\n" * 12) + "\nSum: "},
    {"id": "chat", "messages": [{"role": "user", "content": SPAN.format("x = 1") + " and " + SPAN.format("y")}]},
    {"id": "other", "prompt": "A mapping " + SPAN.format("from keys to values, which may be anything") + " is"},
]


def lclm(*arguments):
    command = [sys.executable, "-c", "from lclm_jax.cli import main; main()", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny LCLM, trained for a few steps from random weights that are large enough for answers to vary."""
    root = tmp_path_factory.mktemp("vllm")
    values = [*SMALL, f"run_dir={root / 'run'}", f"init={{lclm: {root / 'start'}}}"]
    settings = [option for value in values for option in ("--set", value)]
    lclm("data", "prepare", DEMO, *settings)
    config = resolve(load_config(DEMO, values))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.6, size=leaf.shape).astype(np.float32), abstract_params(config.model)
    )
    tokenizers = dict(
        decoder_tokenizer=RunPaths(config).decoder_tokenizer, encoder_tokenizer=RunPaths(config).encoder_tokenizer
    )
    export_model(params, config.model, root / "start", **tokenizers)
    lclm("train", DEMO, *settings)
    lclm("export", root / "run", root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def embeddings(exported):
    """What ``lclm encode`` writes, id -> [positions, hidden]."""
    prompts, out = exported.parent / "prompts.jsonl", exported.parent / "embeds.safetensors"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in PROMPTS))
    lclm("encode", exported, "--prompts", prompts, "--out", out, "--batch-windows", 4)
    return load_file(out)


@pytest.fixture(scope="module")
def answers(exported):
    """Our greedy tokens, id -> list."""
    generator = Generator.from_folder(exported)
    sampling = Sampling(max_new_tokens=NEW_TOKENS, stop_ids=())
    prompts = [line.get("prompt") or line["messages"] for line in PROMPTS]
    found = generator.generate(prompts, sampling)
    return {line["id"]: list(answer.ids) for line, answer in zip(PROMPTS, found, strict=True)}


def test_latents_alone_decide_between_two_answers(embeddings, answers):
    """So an engine that gives both answers has read the latents, and so have we."""
    one, other = embeddings["span"], embeddings["its twin"]
    assert one.shape == other.shape
    rows = (one != other).any(dim=1)
    assert 3 <= rows.sum() < len(rows) / 2
    assert sum(a != b for a, b in zip(answers["span"], answers["its twin"], strict=True)) > NEW_TOKENS / 2
    assert len({tuple(ids) for ids in answers.values()}) == len(answers)


def test_transformers_gives_our_tokens(exported, embeddings, answers):
    model = transformers.AutoModelForCausalLM.from_pretrained(exported / "decoder", dtype=torch.float32)
    for name, embeds in embeddings.items():
        mask = torch.ones(1, len(embeds), dtype=torch.long)
        ids = model.generate(
            inputs_embeds=embeds[None],
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert ids[0].tolist() == answers[name], name


def test_vllm_gives_our_tokens(exported, embeddings, answers):
    engine = vllm.LLM(
        model=str(exported / "decoder"),
        enable_prompt_embeds=True,
        enable_prefix_caching=False,  # with prompt embeddings it has given wrong answers (vLLM issue 56655)
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        enforce_eager=True,
    )
    sampling = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = engine.generate([{"prompt_embeds": embeds} for embeds in embeddings.values()], sampling)
    for name, output in zip(embeddings, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == answers[name], name


def test_the_command_prints_our_tokens(exported, answers):
    generator = Generator.from_folder(exported)
    prompt = next(line["prompt"] for line in PROMPTS if line["id"] == "span")
    (answer,) = generator.generate([prompt], Sampling(max_new_tokens=NEW_TOKENS))
    assert list(answer.ids) == answers["span"][: len(answer.ids)]
    printed = lclm("generate", exported, "--raw", "--prompt", prompt, "--max-new-tokens", NEW_TOKENS)
    assert printed == answer.text + "\n"

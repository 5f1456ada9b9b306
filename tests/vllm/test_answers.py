"""vLLM gives the prompt ids and greedy tokens of the JAX generator and of transformers, for every published setting.

All engines run in one process, which is started once: most of an engine's start is the import of vLLM.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_exports import PROMPTS, SETTINGS, tiny_export
from transformers import AutoModelForCausalLM, AutoProcessor

import lclm_serving  # noqa: F401 - the Auto classes load exports
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling

ROOT = Path(__file__).parents[2]
NEW_TOKENS = 32
SMALL = {"block_size": 32, "max_num_batched_tokens": 64, "enable_prefix_caching": True}
"""Spans are cut by chunks of the prefill, and blocks are reused."""
PLAIN = {"enable_prefix_caching": False}
SCARCE = {"block_size": 32, "num_gpu_blocks_override": 17, "enable_prefix_caching": False}
"""Blocks for one prompt of the greatest length: of twelve at once some are preempted."""
MIXED = dict(zip(PROMPTS, [4, 8, 16] * 4, strict=True))
"""Tokens of one latent, prompt by prompt."""


def jobs_of(exports, root):
    """Name -> job, see ``tests.vllm.offline``."""
    jobs = {}
    for number, (name, folder) in enumerate(exports.items()):
        options = SMALL if number % 2 == 0 else PLAIN
        jobs[name] = {"model": folder, "options": {"dtype": "float32", **options}}
        jobs[f"{name} bfloat16"] = {
            "model": folder,
            "options": {"dtype": "bfloat16", **options},
            "new_tokens": 1,
            "logprobs": 20,
        }
    jobs["preempted"] = {"model": exports["mean"], "options": {"dtype": "float32", **SCARCE}}
    for name in ("mean", "eos_attn"):
        jobs[f"{name} mixed"] = {"model": exports[name], "options": {"dtype": "float32", **SMALL}, "ratios": MIXED}
    lora = {"enable_lora": True, "max_lora_rank": 8, "enable_prefix_caching": True}
    jobs["lora"] = {"model": exports["mean"], "options": {"dtype": "float32", **lora}, "lora": root / "lora"}
    return {name: job | {"out": root / f"{name}.json"} for name, job in jobs.items()}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    return {name: tiny_export(name, root / name) for name in SETTINGS}


@pytest.fixture(scope="module")
def found(exports, tmp_path_factory):
    """Name of a job -> what it found."""
    root = tmp_path_factory.mktemp("answers")
    write_lora(exports["mean"], root / "lora")
    jobs = jobs_of(exports, root)
    (root / "jobs.json").write_text(json.dumps(list(jobs.values()), default=str))
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.vllm.offline", str(root / "jobs.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {name: json.loads(job["out"].read_text()) for name, job in jobs.items()}


def expected(folder, prompts=PROMPTS, **changes):
    """Name -> prompt ids and 32 greedy tokens of the JAX generator."""
    generator = Generator.from_folder(folder, **changes)
    examples = [generator.example(prompt) for prompt in prompts.values()]
    answers = generator.generate_examples(examples, Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    return {
        name: {"prompt": example.tokens.tolist(), "answer": list(answer.ids)}
        for name, example, answer in zip(prompts, examples, answers, strict=True)
    }


def inputs_of(processor, prompt):
    return processor(prompt) if isinstance(prompt, str) else processor.apply_chat_template(prompt)


def greedy(model, inputs):
    """32 greedy tokens of transformers."""
    limits = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    done = model.generate(**inputs, **limits, pad_token_id=0, eos_token_id=None)
    return done[0, inputs["input_ids"].shape[1] :].tolist()


def write_lora(folder, out):
    """A low-rank update of the decoder, in the format of peft, with weights that change answers."""
    values = json.loads((folder / "decoder" / "config.json").read_text())
    width, kv = values["hidden_size"], values["num_key_value_heads"] * values["head_dim"]
    heads, mlp = values["num_attention_heads"] * values["head_dim"], values["intermediate_size"]
    shapes = {"self_attn.q_proj": (width, heads), "self_attn.v_proj": (width, kv), "mlp.up_proj": (width, mlp)}
    made = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(values["num_hidden_layers"]):
        for name, (inner, outer) in shapes.items():
            place = f"base_model.model.language_model.model.layers.{layer}.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(8, inner, generator=made) * 0.3
            tensors[f"{place}.lora_B.weight"] = torch.randn(outer, 8, generator=made) * 0.3
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    modules = [name.split(".")[1] for name in shapes]
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", r=8, lora_alpha=8, target_modules=modules)
    (out / "adapter_config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_the_jax_generator_and_of_transformers(name, exports, found):
    wanted = expected(exports[name])
    assert len({tuple(one["answer"]) for one in wanted.values()}) == len(PROMPTS)
    model, processor = (auto.from_pretrained(exports[name]) for auto in (AutoModelForCausalLM, AutoProcessor))
    for prompt, one in wanted.items():
        assert {key: found[name]["prompts"][prompt][key] for key in one} == one, prompt
        inputs = inputs_of(processor, PROMPTS[prompt])
        assert (inputs["input_ids"][0].tolist(), greedy(model, inputs)) == (one["prompt"], one["answer"]), prompt


@pytest.mark.parametrize("name", SETTINGS)
def test_in_bfloat16_logits_are_as_near_as_those_of_transformers(name, exports, found):
    processor = AutoProcessor.from_pretrained(exports[name])
    exact, rough = (
        AutoModelForCausalLM.from_pretrained(exports[name], dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    errors = {"transformers": [], "vllm": []}
    for prompt, one in found[f"{name} bfloat16"]["prompts"].items():
        inputs = inputs_of(processor, PROMPTS[prompt])
        assert one["prompt"] == inputs["input_ids"][0].tolist()
        ids = [int(token) for token in one["logprobs"]]
        with torch.no_grad():
            right, theirs = (
                torch.log_softmax(model(**inputs).logits[0, -1].float(), -1)[ids].numpy() for model in (exact, rough)
            )
        errors["transformers"].append(theirs - right)
        errors["vllm"].append(np.array(list(one["logprobs"].values())) - right)
    spread = {name: float(np.sqrt(np.mean(np.square(np.concatenate(some))))) for name, some in errors.items()}
    assert spread["vllm"] < 2 * spread["transformers"], spread


def test_preempted_prompts_get_the_same_answers(exports, found):
    assert found["preempted"]["preemptions"] > 0
    assert found["preempted"]["prompts"] == found["mean"]["prompts"]


@pytest.mark.parametrize("name", ["mean", "eos_attn"])
def test_a_request_has_the_ratio_that_it_asks_for(name, exports, found):
    model, processor = (auto.from_pretrained(exports[name]) for auto in (AutoModelForCausalLM, AutoProcessor))
    for ratio in sorted(set(MIXED.values())):
        prompts = {prompt: PROMPTS[prompt] for prompt, chosen in MIXED.items() if chosen == ratio}
        for prompt, one in expected(exports[name], prompts, ratio=ratio).items():
            assert found[f"{name} mixed"]["prompts"][prompt] == one, (ratio, prompt)
            if isinstance(PROMPTS[prompt], str):
                assert greedy(model, processor(PROMPTS[prompt], compression_ratio=ratio)) == one["answer"]


def test_lora_of_the_decoder_answers_as_merged_weights(exports, found, tmp_path):
    model, processor = (auto.from_pretrained(exports["mean"]) for auto in (AutoModelForCausalLM, AutoProcessor))
    tensors = write_lora(exports["mean"], tmp_path / "lora")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, a in tensors.items():
            if name.endswith("lora_A.weight"):
                b = tensors[name.replace("lora_A", "lora_B")]
                place = name.removeprefix("base_model.model.").replace("lora_A.", "")
                weights[place] += b @ a
    for prompt, one in found["lora"]["prompts"].items():
        assert greedy(model, inputs_of(processor, PROMPTS[prompt])) == one["answer"], prompt
    assert found["lora"]["prompts"] != found["mean"]["prompts"]

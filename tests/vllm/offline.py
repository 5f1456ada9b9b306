"""Answers of vLLM to the twelve prompts, engine by engine in one process: ``python -m tests.vllm.offline JOBS``.

JOBS is a JSON file, a list of objects: ``model`` and ``out`` (paths), ``options`` (of ``vllm.LLM``), and perhaps
``ratios`` (prompt -> tokens of one latent), ``lora`` (a folder) and ``logprobs`` (how many, of the first new token).
"""

import gc
import json
import sys
from pathlib import Path

from tests.tiny_exports import PROMPTS
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

import vllm

NEW_TOKENS = 32


def answers_of(engine, job):
    """The request outputs of all prompts, by name: texts in one batch, chats one by one."""
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=job.get("new_tokens", NEW_TOKENS), ignore_eos=True, logprobs=job.get("logprobs")
    )
    options = {"lora_request": LoRARequest("tuned", 1, job["lora"])} if "lora" in job else {}
    ratios = job.get("ratios", {})
    asked = {
        name: {"prompt": prompt, **({"mm_processor_kwargs": {"compression_ratio": ratios[name]}} if ratios else {})}
        for name, prompt in PROMPTS.items()
        if isinstance(prompt, str)
    }
    answers = dict(zip(asked, engine.generate(list(asked.values()), sampling, **options), strict=True))
    for name in PROMPTS.keys() - asked.keys():
        more = {"mm_processor_kwargs": {"compression_ratio": ratios[name]}} if ratios else {}
        (answers[name],) = engine.chat(PROMPTS[name], sampling, **options, **more)
    return answers


def run(job):
    engine = vllm.LLM(
        model=job["model"],
        max_model_len=512,
        max_num_seqs=12,
        enforce_eager=True,
        disable_log_stats=False,
        **job["options"],
    )
    found = {}
    for name, answer in answers_of(engine, job).items():
        (choice,) = answer.outputs
        found[name] = {"prompt": list(answer.prompt_token_ids), "answer": list(choice.token_ids)}
        if choice.logprobs:
            found[name]["logprobs"] = {token: entry.logprob for token, entry in choice.logprobs[0].items()}
    preemptions = [metric.value for metric in engine.get_metrics() if metric.name == "vllm:num_preemptions"]
    Path(job["out"]).write_text(json.dumps({"prompts": found, "preemptions": sum(preemptions)}))


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(one)
        gc.collect()
        cleanup_dist_env_and_memory()

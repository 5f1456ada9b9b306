"""Answers of vLLM to the twelve prompts, from a process of its own: ``python -m tests.vllm.offline MODEL OUT JSON``."""

import json
import sys
from pathlib import Path

from tests.tiny_exports import PROMPTS

import vllm

NEW_TOKENS = 32

if __name__ == "__main__":
    folder, out, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    engine = vllm.LLM(model=folder, max_model_len=512, max_num_seqs=12, enforce_eager=True, **options)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=1)
    texts = [name for name, prompt in PROMPTS.items() if isinstance(prompt, str)]
    chats = [name for name in PROMPTS if name not in texts]
    answers = engine.generate([PROMPTS[name] for name in texts], sampling)
    answers += engine.chat([PROMPTS[name] for name in chats], sampling)
    found = {
        name: {"prompt": list(answer.prompt_token_ids), "answer": list(answer.outputs[0].token_ids)}
        for name, answer in zip([*texts, *chats], answers, strict=True)
    }
    out.write_text(json.dumps(found))

"""The LCLM as a model of EleutherAI's lm-evaluation-harness, so that its tasks run on compressed context.

``python -m lclm_jax.suite.lm_eval_model --model lclm --model_args folder=MODEL --tasks ...`` is ``lm_eval`` with it. It
needs the package ``lm-eval``; nothing else imports this module.
"""

from collections.abc import Sequence
from typing import Any

import lm_eval.__main__
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Context
from lclm_jax.suite.systems.lclm_worker import load_system
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START
from lclm_jax.types import JsonObject

_MAX_NEW_TOKENS = 256


class LclmModel(LM):
    """Loglikelihood and generation with everything before the last paragraph of a prompt compressed.

    Args:
        folder: an export or a run.
        context: ``memory`` (latents), or ``raw`` to compare with.
        separator: where a prompt is cut: its last occurrence begins what is read in full. Prompts with memory tags of
            their own are taken as they are, prompts without the separator are not compressed.
        dtype: arithmetic; None: as the model is stored.
    """

    def __init__(
        self, folder: str, context: Context = "memory", separator: str = "\n\n", dtype: str | None = None, **_: object
    ):
        super().__init__()
        self._system = load_system({"model": folder, "context": context, "dtype": dtype})
        self._separator = separator.encode().decode("unicode_escape")

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding gives it."""
        found = []
        for prompt, continuation in (one.args for one in requests):
            reply = self._system.answer(self._request(prompt, gold=continuation))
            found.append((-reply["nll"], reply["gold_is_greedy"]))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, cut at the first of the strings that end one."""
        found = []
        for prompt, options in (one.args for one in requests):
            tokens = int(options.get("max_gen_toks", _MAX_NEW_TOKENS))
            answer = self._system.answer(self._request(prompt, max_new_tokens=tokens, generate=True))["answer"]
            until = options.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                answer = answer.split(stop)[0] if stop else answer
            found.append(answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Not measured: a text without a context has nothing to compress."""
        raise LclmError("tasks of rolling likelihood have no context to compress; choose tasks with a prompt")

    def _request(self, prompt: str, **changes: Any) -> JsonObject:
        request: JsonObject = {"id": "", "instruction": "", "context": "", "question": prompt, "prefix": "", "gold": ""}
        context, found, rest = prompt.rpartition(self._separator)
        if found and context and MEMORY_START not in prompt and MEMORY_END not in prompt:
            request |= {"context": context, "question": found + rest}
        return request | {"chat": False, "max_new_tokens": 1, "generate": False} | changes


register_model("lclm")(LclmModel)

if __name__ == "__main__":
    lm_eval.__main__.cli_evaluate()

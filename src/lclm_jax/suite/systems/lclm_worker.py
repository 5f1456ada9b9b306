"""The LCLM through JAX: context as latents, as raw text, truncated, or left out; one model for all four."""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.eval.examples import Target
from lclm_jax.eval.score import Scorer
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.windows import bucket
from lclm_jax.suite.sample import Context
from lclm_jax.suite.systems.serve import peak_rss, prompt_of, serve
from lclm_jax.text.example import Example, expand, outline_pieces
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, split_memory
from lclm_jax.types import JsonObject

_STEPS = 4
"""Sizes of rows per doubling of their length: at most a quarter of a row is padding."""


class _Answer(NamedTuple):
    ids: list[int]
    first_seconds: float
    seconds: float


class LclmSystem:
    """A model that answers requests.

    Args:
        generator: the model with its tokenizers.
        context: how it is given the context: memory, raw, none, truncated.
        ratio: of a truncation.

    Raises:
        LclmError: the model lacks memory tokens.
    """

    def __init__(self, generator: Generator, context: Context, ratio: float = 1.0):
        self._generator, self._context, self._ratio = generator, context, ratio
        model = generator.model
        self._tokenizer = generator.decoder_tokenizer
        self._tokenizer.memory_ids  # noqa: B018 - raises LclmError if the vocabulary lacks the memory tokens
        self._chat = len(self._tokenizer.chat_templates) > 0
        pad_id = generator.encoder_tokenizer.pad_id if model.has_pad_markers else None
        # Lengths in few buckets, so that few shapes are compiled however many lengths the samples have.
        rounded = functools.partial(bucket, steps=_STEPS)
        self._scorer = Scorer(generator.params, model, generator.mesh, 1, pad_id, rounded=rounded)
        decoder = model.decoder
        width = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim
        self._position_bytes = width * jax.numpy.dtype(model.compute_dtype).itemsize
        self.facts = {
            "max_positions": decoder.max_positions,
            "ratio": model.ratio if self._context == "memory" else self._ratio,
            "position_bytes": self._position_bytes,
            "chat_template": self._chat,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }

    def count(self, request: JsonObject) -> JsonObject:
        """Positions of the prompt, and tokens of the raw one."""
        positions = len(self._example(request).tokens)
        raw = positions if self._context == "raw" else len(self._tokenizer.encode(self._text(request, "raw")))
        return {"positions": positions, "raw_tokens": raw}

    def answer(self, request: JsonObject) -> JsonObject:
        """Answer and likelihood of one sample; ``stored``: its latents are there before the clock starts."""
        reply = self.count(request)
        reply["cache_bytes"] = reply["positions"] * self._position_bytes
        if request.get("gold"):
            reply |= self._likelihood(request)
        if request.get("generate"):
            reply |= self._generate(request)
        return reply | {"peak_bytes": _peak()}

    def _generate(self, request: JsonObject) -> JsonObject:
        stops = self._tokenizer.stop_ids
        sampling = Sampling(max_new_tokens=request["max_new_tokens"])
        found = self._run(request, sampling)
        stopped = bool(found.ids) and found.ids[-1] in stops
        return {
            "answer": self._tokenizer.decode(found.ids[:-1] if stopped else found.ids, skip_special=True),
            "finish": "stop" if stopped else "length",
            "new_tokens": len(found.ids),
            "ttft_seconds": found.first_seconds,
            "seconds": found.seconds,
        }

    def _run(self, request: JsonObject, sampling: Sampling) -> _Answer:
        """From text to the last token; the clock starts before the text is tokenized."""
        stored = None
        if request.get("stored"):
            example = self._example(request)
            stored = [self._generator.encoder.pooled(example.spans)]
        start = time.perf_counter()
        example = self._example(request)
        ids, first = [], 0.0
        for (token,) in self._generator.tokens([example], sampling, stored):
            first = first or time.perf_counter() - start
            if token is not None:
                ids.append(token)
        return _Answer(ids, first, time.perf_counter() - start)

    def _likelihood(self, request: JsonObject) -> JsonObject:
        prompt, gold = self._example(request), self._tokenizer.encode(request["gold"], plain=True)
        if not len(gold):
            raise LclmError("the gold answer has no token")
        tokens = np.concatenate([prompt.tokens, gold]).astype(np.int32)
        example = Example(tokens, np.zeros(len(tokens), np.float32), prompt.spans)
        scores = self._scorer.score([Target(example, len(prompt.tokens), len(tokens))])
        right = bool((scores.hits == scores.weights).all())
        return {"nll": float(scores.nll.sum()), "gold_tokens": len(gold), "gold_is_greedy": right}

    def _example(self, request: JsonObject) -> Example:
        text = self._text(request, self._context)
        if not (request["chat"] and self._chat):
            return self._generator.example(text)
        # A chat begins as its template begins it; the reply's first words follow it, so it is rendered already.
        outline = outline_pieces(split_memory(text), self._tokenizer, self._generator.encoder_tokenizer)
        return expand(outline, self._generator.model.ratio, self._tokenizer.memory_ids.placeholder)

    def _text(self, request: JsonObject, context: Context) -> str:
        """The whole prompt, rendered as a chat where the sample and the model allow it."""
        if context == "memory" and request["context"]:
            text = f"{request['instruction']}{MEMORY_START}{request['context']}{MEMORY_END}{request['question']}"
        elif context == "truncated":
            text = prompt_of({**request, "context": self._truncated(request["context"])}, "raw")
        else:
            text = prompt_of(request, "none" if context == "none" else "raw")
        if request["chat"] and self._chat:
            text = self._tokenizer.render_chat([{"role": "user", "content": text}], add_generation_prompt=True)
        return text + request["prefix"]

    def _truncated(self, text: str) -> str:
        """The first and the last half of the tokens that the budget allows (LongBench's truncation)."""
        _, starts, ends = self._tokenizer.encode_with_offsets(text, plain=True)
        kept = -(-len(starts) // max(1.0, self._ratio))
        half = int(kept) // 2
        if int(kept) >= len(starts):
            return text
        return text[: int(ends[int(kept) - half - 1])] + (text[int(starts[-half]) :] if half else "")


def load_system(settings: JsonObject) -> LclmSystem:
    """The system of ``settings``: ``model`` (folder), ``context``, ``ratio``, ``dtype``.

    Raises ``LclmError`` if there is no such model, or it lacks memory tokens.
    """
    import lclm_jax  # the public API leads to every package: a long chain of imports at the top

    generator = lclm_jax.load_model(settings["model"], settings.get("dtype"))
    return LclmSystem(generator, settings["context"], float(settings.get("ratio", 1)))


def _peak() -> int:
    """Peak memory: of the accelerator, or of the process where there is none."""
    found = jax.devices()[0].memory_stats() or {}
    return int(found.get("peak_bytes_in_use", 0)) or peak_rss()


if __name__ == "__main__":
    serve(load_system)

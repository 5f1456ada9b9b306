"""Greedy generation from an export's decoder, beside ``generate`` of transformers on the same weights and prompts.

Prompts are token ids drawn at random, without memory spans, so that both sides compute the same; every answer has the
same length. Time to the first token is that of answers of one token; of a further token, what longer answers take more.
"""

import importlib.util
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lclm_jax.bench.timing import surroundings
from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.text.example import Example
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

LENGTHS = (128, 512, 2048)
"""Positions of prompts."""


class Times(NamedTuple):
    """One turn: seconds of two answers to all prompts at once."""

    first: float
    """Of an answer of one token."""
    whole: float
    """Of one of all new tokens."""


def bench_generate(
    folder: Path, lengths: Sequence[int], rows: int, new_tokens: int, repeats: int, torch: bool, dtype: str | None
) -> JsonObject:
    """Time answers of ``new_tokens`` tokens to ``rows`` prompts of each of ``lengths`` positions.

    Both sides take turns, ours first, after one call of each that is not timed.

    Args:
        folder: an exported or imported folder.
        lengths: positions of a prompt; none: ``LENGTHS``, as far as the decoder has positions.
        rows: prompts that are answered together.
        new_tokens: tokens of an answer, 2 at least.
        repeats: turns of each side.
        torch: whether transformers takes part, if it is installed.
        dtype: what is computed in; None: as the decoder is stored.

    Returns:
        JSON values: ``rows`` has a row for each length with medians over the turns; ``ratio`` is ours to transformers'
        tokens per second of whole answers, ``ratios`` that of each turn, ``first_ratio`` its time to the first token to
        ours, and ``same_tokens`` the share of new tokens that are equal up to the first that is not.

    Raises:
        LclmError: the folder cannot be read, or prompt and answer exceed the decoder's positions.
    """
    generator = Generator.from_folder(folder) if dtype is None else Generator.from_folder(folder, compute_dtype=dtype)
    if generator.model.lora.decoder is not None:
        raise LclmError(f"{folder} has LoRA of the decoder, which transformers reads otherwise; merge it: lclm export")
    other = _Transformers(folder, generator.model.compute_dtype) if torch and _installed() else None
    drawn, most = np.random.default_rng(0), generator.model.decoder.max_positions - new_tokens
    measured = []
    for length in lengths or [length for length in LENGTHS if length <= most]:
        ids = drawn.integers(0, generator.decoder_tokenizer.plain_vocab_size, (rows, length), np.int32)
        logger.info("prompts of %d positions", length)
        measured.append(_measure(generator, other, ids, new_tokens, repeats))
    return {
        "surroundings": surroundings(),
        "model": str(folder),
        "dtype": generator.model.compute_dtype,
        "batch": rows,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "rows": measured,
    }


def _measure(
    generator: Generator, other: "_Transformers | None", ids: np.ndarray, new_tokens: int, repeats: int
) -> JsonObject:
    """One row of the result: prompts ``ids``, int32 ``[rows, positions]``."""
    examples = [Example(row, np.zeros(row.size, np.float32), ()) for row in ids]

    def our_tokens(count: int) -> np.ndarray:
        how = Sampling(max_new_tokens=count, stop_ids=())
        return np.array([answer.ids for answer in generator.generate_examples(examples, how)])

    ours, theirs = [], []
    our_tokens(1)
    tokens = our_tokens(new_tokens)
    same = None if other is None else _same_share(tokens, other.tokens(ids, new_tokens))
    for _ in range(repeats):
        ours.append(_times(our_tokens, new_tokens))
        if other is not None:
            theirs.append(_times(lambda count: other.tokens(ids, count), new_tokens))
    result: JsonObject = {"positions": ids.shape[1], "ours": _medians(ours, len(ids), new_tokens)}
    if other is not None:
        pairs = list(zip(ours, theirs, strict=True))
        rates = [b.whole / a.whole for a, b in pairs]
        result |= {
            "transformers": _medians(theirs, len(ids), new_tokens),
            "ratio": statistics.median(rates),
            "ratios": rates,
            "first_ratio": statistics.median(b.first / a.first for a, b in pairs),
            "same_tokens": same,
        }
    return result


def _times(tokens: Callable[[int], np.ndarray], count: int) -> Times:
    """One turn; ``tokens`` answers with so many tokens."""
    start = time.perf_counter()
    tokens(1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    tokens(count)
    return Times(first, time.perf_counter() - start)


def _medians(turns: Sequence[Times], rows: int, new_tokens: int) -> JsonObject:
    whole = statistics.median(one.whole for one in turns)
    return {
        "first_seconds": statistics.median(one.first for one in turns),
        "token_seconds": statistics.median(one.whole - one.first for one in turns) / (new_tokens - 1),
        "seconds": whole,
        "tokens_per_s": rows * new_tokens / whole,
    }


def _same_share(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of all new tokens ``[rows, tokens]``, the share before the first difference of its row."""
    return float(np.logical_and.accumulate(ours == theirs, axis=1).mean())


def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


class _Transformers:
    """The decoder of ``folder`` in transformers, on the fastest device that torch sees."""

    def __init__(self, folder: Path, dtype: str):
        import torch
        from transformers import AutoModelForCausalLM

        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder / "decoder", dtype=getattr(torch, dtype))
        self._model = loaded.to(self._device).eval()

    def tokens(self, ids: np.ndarray, count: int) -> np.ndarray:
        """``count`` greedy tokens after each of ``ids``, int32 ``[rows, count]``; nothing ends an answer."""
        torch = self._torch
        prompt = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        with torch.inference_mode():
            answer = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return answer[:, ids.shape[1] :].cpu().numpy().astype(np.int32)

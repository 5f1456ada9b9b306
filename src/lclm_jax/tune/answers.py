"""Held-out questions: the loss of their answers, and answers with and without compression, scored."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from lclm_jax.config import Config
from lclm_jax.data.packing.sources import make_sources
from lclm_jax.data.packing.twin_rows import decoder_ids, raw_twin
from lclm_jax.eval.examples import Target
from lclm_jax.eval.probe import first_examples, trained_weights
from lclm_jax.eval.score import Scorer
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.suite.scoring.overlap import f1, words_of
from lclm_jax.text.example import Example, placeholder_ranges
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject, Params

_MEASURED = 256
"""Examples whose loss is measured."""
_ROWS = 8
LOSS = "loss_nats/held_out"


def held_out_examples(config: Config, stage: str, tokenizers: Tokenizers, count: int = _MEASURED) -> list[Target]:
    """Up to ``count`` held-out examples, evenly over the rows."""
    (source,) = make_sources(config, stage, tokenizers, "held_out")
    return first_examples(source, count)


class HeldOutLoss:
    """Measures the loss of the held-out answers: a probe of training."""

    def __init__(self, config: Config, stage: str, tokenizers: Tokenizers, mesh: Mesh):
        self._model = config.model.model_copy(update={"memory_token_ids": tuple(tokenizers.decoder.memory_ids)})
        self._mesh, self._targets = mesh, held_out_examples(config, stage, tokenizers)
        self._pad_id = tokenizers.encoder.pad_id if self._model.has_pad_markers else None

    def __call__(self, params: Params) -> dict[str, float]:
        """``loss_nats/held_out``: nats per token that carries loss."""
        scores = Scorer(params, self._model, self._mesh, _ROWS, self._pad_id).score(self._targets)
        weights = trained_weights(self._targets, scores)
        return {LOSS: float((scores.nll * weights).sum() / max(weights.sum(), 1e-9))}


class Question(NamedTuple):
    """A prompt in both forms, and the answer that is wanted."""

    compressed: Example
    raw: Example
    wanted: str


def questions_of(targets: Sequence[Target], tokenizers: Tokenizers, room: int) -> list[Question]:
    """The questions whose raw prompt has at most ``room`` tokens; the answer is what carries loss."""
    found, decoder = [], tokenizers.decoder
    for example, *_ in targets:
        learned = np.flatnonzero(example.loss > 0)
        if not learned.size:
            continue
        tokens = example.tokens[: learned[0]]
        spans = example.spans[: len(placeholder_ranges(tokens, decoder.memory_ids.placeholder))]
        prompt = Example(tokens, np.zeros(len(tokens), np.float32), spans)
        raw, _ = raw_twin(prompt, [decoder_ids(span, tokenizers) for span in spans], decoder.memory_ids)
        wanted = decoder.decode(example.tokens[learned], skip_special=True)
        if len(raw) <= room:
            found.append(Question(prompt, Example(raw, np.zeros(len(raw), np.float32), ()), wanted))
    return found


def answer(generator: Generator, questions: Sequence[Question], max_new_tokens: int) -> JsonObject:
    """Greedy answers scored: ``exact`` (SQuAD's normalisation) and ``f1``, ``compressed`` and ``raw``, means."""
    results: JsonObject = {"questions": len(questions)}
    for form in ("compressed", "raw"):
        prompts, texts = [getattr(question, form) for question in questions], []
        for begin in range(0, len(prompts), _ROWS):
            chosen = prompts[begin : begin + _ROWS]
            texts += generator.generate_examples(chosen, Sampling(max_new_tokens=max_new_tokens))
        pairs = [(one.text, question.wanted) for one, question in zip(texts, questions, strict=True)]
        results[form] = {
            "exact": float(np.mean([words_of(text) == words_of(wanted) for text, wanted in pairs])),
            "f1": float(np.mean([_f1(text, wanted) for text, wanted in pairs])),
        }
    sizes = [(len(question.raw.tokens), len(question.compressed.tokens)) for question in questions]
    results["effective_ratio"] = float(np.sum(sizes, axis=0)[0] / np.sum(sizes, axis=0)[1])
    return results


def _f1(text: str, wanted: str) -> float:
    """F1 of words, as SQuAD 2.0 has it: where the normalisation leaves no word of either, both have to be empty."""
    if not words_of(text) or not words_of(wanted):
        return float(words_of(text) == words_of(wanted))
    return f1(text, wanted)

"""Greedy answers of a golden case by our generator."""

from collections.abc import Sequence

from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.parity.case import Case
from lclm_jax.text.example import Example


def golden_greedy(case: Case, prompts: Sequence[Example], count: int, penalty: float) -> list[list[int]]:
    """``count`` tokens after each prompt, always the largest logit, never stopping (what ``run_golden`` asks for)."""
    generator = Generator(case.params, case.model, case.decoder, case.encoder)
    sampling = Sampling(max_new_tokens=count, repetition_penalty=penalty, stop_ids=())
    return [list(generation.ids) for generation in generator.generate_examples(prompts, sampling)]

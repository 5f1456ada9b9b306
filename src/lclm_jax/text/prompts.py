"""Requests to repeat a compressed text verbatim, tokenized once."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lclm_jax.text.example import outline_pieces
from lclm_jax.text.memory import MEMORY_END, MEMORY_START, split_memory
from lclm_jax.text.tokenizer import Tokenizer

REPETITION_REQUESTS = (
    "{memory}\nRepeat the text.",
    "Repeat the text:\n{memory}",
    "{memory}\nRepeat it word for word.",
    "Copy this: {memory}",
    "{memory}\nCopy it.",
    "{memory}\nWhat does the text say?",
    "Write it out in full: {memory}",
    "{memory}\nPrint the text above.",
    "Recite: {memory}",
    "{memory}\nGive the exact text.",
    "Return this as it is:\n{memory}",
    "{memory}\nDecode.",
)
"""User messages; the span stands where ``{memory}`` is."""


@dataclass(frozen=True, slots=True, eq=False)
class RepetitionPrompt:
    """Decoder ids around a span and its repetition, int32 each."""

    head: np.ndarray
    """The prompt up to and with the start tag."""
    tail: np.ndarray
    """From the end tag to where the reply begins."""
    closing: np.ndarray
    """What ends the reply; part of it."""

    @property
    def overhead(self) -> int:
        """Decoder positions beside the placeholders and the repeated text."""
        return len(self.head) + len(self.tail) + len(self.closing)


@lru_cache(maxsize=8)
def repetition_prompts(decoder: Tokenizer) -> tuple[RepetitionPrompt, ...]:
    """The requests of ``REPETITION_REQUESTS`` through the chat template of ``decoder``."""
    return tuple(_prompt(request, decoder) for request in REPETITION_REQUESTS)


def _prompt(request: str, decoder: Tokenizer) -> RepetitionPrompt:
    question = {"role": "user", "content": request.replace("{memory}", f"{MEMORY_START}x{MEMORY_END}")}
    opening = decoder.render_chat([question], add_generation_prompt=True)
    whole = decoder.render_chat([question, {"role": "assistant", "content": "x"}])
    if not whole.startswith(f"{opening}x"):
        raise ValueError(
            f"the chat template of {decoder.folder} does not render a reply after its generation prompt; repetition"
            " examples need that: use another template"
        )
    outline = outline_pieces(split_memory(opening), decoder, decoder)
    gap = int(outline.gaps[0])
    return RepetitionPrompt(outline.tokens[:gap], outline.tokens[gap:], decoder.encode(whole[len(opening) + 1 :]))

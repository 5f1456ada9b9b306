"""Reconstruction: requests to repeat a compressed text verbatim, tokenized once, and the examples made with them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.text.example import DocumentTokens, Example, Segment, expand, outline_pieces
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, MemoryIds, split_memory
from lclm_jax.text.outline import make_outline
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
"""User messages; ``{memory}`` is replaced by the span."""

_QUOTE = "{quote}"
CONTINUATION_REQUESTS = (
    "{memory}\nWrite what follows this part of the text:\n{quote}",
    "{memory}\nGo on verbatim from here:\n{quote}",
    "Text: {memory}\nWhat comes after these words?\n{quote}",
    "{memory}\nComplete the quotation to the end:\n{quote}",
)
"""User messages that ask for the rest of the span after a quotation; it ends the message."""


@dataclass(frozen=True, slots=True, eq=False)
class RepetitionPrompt:
    """Decoder ids around a span and its repetition, int32 each."""

    head: np.ndarray
    """The prompt up to and with the start tag."""
    tail: np.ndarray
    """From the end tag to where the reply begins, or to the quotation."""
    closing: np.ndarray
    """What ends the reply; part of it."""
    after_quote: np.ndarray | None = None
    """From the quotation to where the reply begins; None: nothing is quoted."""

    @property
    def overhead(self) -> int:
        """Decoder positions beside the placeholders and the repeated text."""
        quoting = 0 if self.after_quote is None else len(self.after_quote)
        return len(self.head) + len(self.tail) + len(self.closing) + quoting


@lru_cache(maxsize=8)
def repetition_prompts(decoder: Tokenizer) -> tuple[RepetitionPrompt, ...]:
    """The requests of ``REPETITION_REQUESTS`` through the chat template of ``decoder``."""
    return tuple(_prompt(request, decoder) for request in REPETITION_REQUESTS)


@lru_cache(maxsize=8)
def continuation_prompts(decoder: Tokenizer) -> tuple[RepetitionPrompt, ...]:
    """The requests of ``CONTINUATION_REQUESTS`` through the chat template of ``decoder``."""
    return tuple(_prompt(request, decoder) for request in CONTINUATION_REQUESTS)


def reconstruction_example_from_ids(
    prompt: RepetitionPrompt,
    document: DocumentTokens,
    segment: Segment,
    memory: MemoryIds,
    ratio: int | np.ndarray,
    quote: Segment | None = None,
) -> Example:
    """Reconstruction: ``prompt`` around the compressed ``segment``, answered by its decoder ids; loss on the answer.

    With a ``quote`` (a part of the segment; for a prompt that quotes) the answer is what follows it in the segment.
    """
    question = np.concatenate([prompt.head, prompt.tail])
    answered = segment
    if quote is not None and prompt.after_quote is not None:
        question = np.concatenate([question, document.decoder_slice(quote), prompt.after_quote])
        answered = Segment(False, quote.stop, segment.stop)
    reply = np.concatenate([document.decoder_slice(answered), prompt.closing])
    weights = [np.zeros(len(question), np.float32), np.ones(len(reply), np.float32)]
    outline = make_outline([question, reply], weights, [len(prompt.head)], [document.encoder_slice(segment)])
    return expand(outline, ratio, memory.placeholder)


def _prompt(request: str, decoder: Tokenizer) -> RepetitionPrompt:
    content = request.replace("{memory}", f"{MEMORY_START}x{MEMORY_END}").replace("{quote}", _QUOTE)
    question = {"role": "user", "content": content}
    opening = decoder.render_chat([question], add_generation_prompt=True)
    whole = decoder.render_chat([question, {"role": "assistant", "content": "x"}])
    if not whole.startswith(f"{opening}x"):
        raise LclmError(
            f"the chat template of {decoder.folder} does not render a reply after its generation prompt; repetition"
            " examples need that: use another template"
        )
    closing = decoder.encode(whole[len(opening) + 1 :])
    # The quotation is a slice between cuts, so the text around it is tokenized separately.
    opening, quoted, rest = opening.partition(_QUOTE)
    outline = outline_pieces(split_memory(opening), decoder, decoder)
    gap = int(outline.gaps[0])
    after = decoder.encode(rest) if quoted else None
    return RepetitionPrompt(outline.tokens[:gap], outline.tokens[gap:], closing, after)

"""Where the analysis of a reply ends and its answer begins."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from lclm_jax.text.chats.chat_template import ChatError
from lclm_jax.text.chats.rendered import RenderedChat
from lclm_jax.text.chats.replies import common_start
from lclm_jax.text.tokenizer import Tokenizer

TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))
"""Tags around an analysis that texts have whatever the template: those that the published mixture was cut at."""

_KEYS = ("reasoning_content", "reasoning", "thinking")
_THOUGHT, _ANSWER = "\ue000thought\ue000", "\ue000answer\ue000"
_LONGEST = 2**20
"""Characters of a reply that are tokenized to find its last tokens; the rest does not change them."""
_TRIES = 64

Boundary = Literal["tags", "separator", "last_tokens"]


class Analysis(NamedTuple):
    """The characters ``[start, stop)`` of what is printed of a reply, and how the end was found."""

    start: int
    stop: int
    boundary: Boundary


def find_analysis(
    chat: RenderedChat, decoder: Tokenizer, separators: Sequence[str] = (), keep_last: int = 128
) -> Analysis | None:
    """The analysis of the last reply of ``chat``; None if there is none to set apart.

    It ends before the first closing tag, those of the template first; else before the last of ``separators`` that has
    text before and after it; else before the last ``keep_last`` decoder tokens of the content. Tags and separators are
    no part of it. The last tokens are those that the rest of the text gives when it is tokenized by itself, so a few
    more than ``keep_last`` stay where the cut would change them.
    """
    reply, content = chat.reply, chat.content.strip()
    for opening, closing in (*thinking_tags(decoder), *TAGS):
        stop = reply.find(closing)
        if stop < 0 or not content.rpartition(closing)[2].strip():
            continue
        start = reply.find(opening, 0, stop)
        start = 0 if start < 0 else start + len(opening)
        if reply[start:stop].strip():
            return Analysis(start, stop, "tags")
        if closing in content:
            return None  # the reply itself says that there is no analysis
    first = reply.find(content) if content else -1
    if first < 0:
        return None
    ends = [at for at in map(content.rfind, separators) if at > 0 and content[:at].strip()]
    if ends:
        return Analysis(first, first + max(ends), "separator")
    length = _length_before_last(content, keep_last, decoder)
    return Analysis(first, first + length, "last_tokens") if length else None


@lru_cache(maxsize=8)
def thinking_tags(decoder: Tokenizer) -> tuple[tuple[str, str], ...]:
    """What the chat template of ``decoder`` prints before and after the reasoning of a reply; none if it prints none.

    The first is empty where the generation prompt has it already.
    """
    question = {"role": "user", "content": "x"}
    for key in _KEYS:
        reply = {"role": "assistant", "content": _ANSWER, key: _THOUGHT}
        try:
            text = decoder.render_chat([question, reply])
            prompt = decoder.render_chat([question], add_generation_prompt=True)
        except ChatError:
            continue
        before, _, after = text.partition(_THOUGHT)
        closing, answered, _ = after.partition(_ANSWER)
        if answered and closing.strip():
            return ((before[len(common_start(before, prompt)) :].strip(), closing.strip()),)
    return ()


def _length_before_last(content: str, keep_last: int, decoder: Tokenizer) -> int:
    """Characters of ``content`` before its last ``keep_last`` decoder tokens; 0 if it has no more than these."""
    before = max(0, len(content) - _LONGEST)
    ids, starts, _ = decoder.encode_with_offsets(content[before:])
    for token in range(len(ids) - keep_last, max(0, len(ids) - keep_last - _TRIES), -1):
        at = before + int(starts[token])
        if content[:at].strip() and np.array_equal(decoder.encode(content[at:]), ids[token:]):
            return at
    return 0

"""Reasoning rows: for a share of them, chosen by a hash, the analysis in the reply becomes a memory span."""

import hashlib
import json
from collections.abc import Sequence

from lclm_jax.config.corpus import ReasoningConfig
from lclm_jax.data.documents import Messages, RawChat
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.text.chats.reasoning import find_analysis
from lclm_jax.text.chats.rendered import RenderedChat
from lclm_jax.text.memory_tags import MEMORY_START, split_memory
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import ReadOnlyJson


class ReasoningPolicy:
    """Compresses the analysis of the last reply of a chat, or leaves it raw.

    Every chat is counted once: ``reasoning_tags``, ``reasoning_separator`` or ``reasoning_last_tokens`` (compressed up
    to there), ``reasoning_raw`` (not chosen), ``reasoning_whole`` (chosen, without a part to compress). Memory tags
    that a reply has already are taken out before (``reasoning_retagged``), so the share is that of the policy alone.
    """

    def __init__(self, config: ReasoningConfig, decoder: Tokenizer, counter: RejectCounter):
        self._config, self._decoder, self._counter = config, decoder, counter

    def untagged(self, messages: Messages) -> Messages:
        """``messages`` without memory tags in the last one; raises ``MemoryTagError`` if they do not pair up."""
        last = messages[-1]
        if MEMORY_START not in last["content"]:
            return messages
        text = "".join(piece.text for piece in split_memory(last["content"]))
        self._counter.note("reasoning_retagged")
        return [*messages[:-1], last | {"content": text}]

    def compress(self, chat: RenderedChat, name: str) -> RenderedChat:
        """``chat`` with its analysis as a span, if it is chosen; ``name``: see ``chosen``."""
        if not chosen(name, self._config.share):
            self._counter.note("reasoning_raw")
            return chat
        found = find_analysis(chat, self._decoder, self._config.separators, self._config.keep_last)
        self._counter.note("reasoning_whole" if found is None else f"reasoning_{found.boundary}")
        return chat if found is None else chat.with_span(found.start, found.stop)


def chosen(name: str, share: float) -> bool:
    """Whether a row is among the ``share`` that is compressed: a hash of its name alone decides."""
    digest = hashlib.sha256(b"compress_reasoning:" + name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def row_name(chat: RawChat, messages: Sequence[ReadOnlyJson], has_id: bool) -> str:
    """What a row is drawn by: its id where rows have one, else its messages, so that equal rows are drawn alike."""
    return chat.id if has_id else json.dumps(messages, ensure_ascii=False, sort_keys=True)

"""The assistant's replies in the rendered text of a chat: where one begins, and whether it says anything."""

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np

from lclm_jax.text.chats.chat_template import ChatError
from lclm_jax.text.chats.special_strings import SpecialTokenError
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import ReadOnlyJson

_OTHER = "\ue000"
"""A reply unlike any in a chat."""


class EmptyReplyError(ChatError):
    """A reply to train on prints as an empty one does."""


def reply_prompt(
    chat: Sequence[ReadOnlyJson], answered: str, decoder: Tokenizer, tools: Sequence[ReadOnlyJson] | None
) -> str:
    """The text of ``chat`` up to where its last message, a reply, begins in ``answered``, the text of all of it.

    Many templates refuse a chat without messages, or print something else for it. So for a chat that the assistant
    opens, the prompt is what two replies have in common.
    """
    *before, reply = chat
    try:
        prompt = decoder.render_chat(before, add_generation_prompt=True, tools=tools)
    except ChatError:
        if before:
            raise
    else:
        if before or answered.startswith(prompt):
            return prompt
    other = decoder.render_chat([{"role": reply["role"], "content": _OTHER}], tools=tools)
    return common_start(answered, other)


def common_start(first: str, second: str) -> str:
    """The longest text with which both begin."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def check_reply(
    chat: Sequence[ReadOnlyJson], printed: str, prompt: str, decoder: Tokenizer, tools: Sequence[ReadOnlyJson] | None
) -> None:
    """Raise ``EmptyReplyError`` if ``printed``, the last message of ``chat``, says no more than an empty one."""
    if any(one and one in printed for one in _said(chat[-1])):
        return
    try:
        empty = decoder.render_chat([*chat[:-1], {"role": chat[-1]["role"], "content": ""}], tools=tools)
    except ChatError:
        return  # the template knows no empty replies
    if empty.removeprefix(prompt).split() == printed.split():
        keys = ", ".join(sorted(name for name in chat[-1] if name != "role"))
        raise EmptyReplyError(
            f"messages[{len(chat) - 1}]: the chat template of {decoder.folder} prints nothing of this reply ({keys});"
            " use a template that does"
        )


def _said(reply: ReadOnlyJson) -> Iterator[str]:
    """What a reply says and no template says by itself: its content, and functions that it calls, as JSON has them."""
    yield reply["content"].strip()
    for call in reply.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and function.get("name"):
            yield json.dumps(function["name"], ensure_ascii=False)


def check_ids(
    tokens: np.ndarray, spans: Sequence[np.ndarray], printed: Sequence[str], pair: Sequence[Tokenizer]
) -> None:
    """Raise ``SpecialTokenError`` if text became special tokens that its strings do not show, as by normalization.

    Args:
        tokens: Decoder ids of a chat.
        spans: Encoder ids of its spans.
        printed: The special tokens in its text, as strings.
        pair: The decoder's tokenizer and the encoder's.
    """
    decoder, encoder = pair
    expected = sum(name in decoder.special_tokens for name in printed)
    inside = sum(int(np.isin(span, encoder.special_ids).sum()) for span in spans)
    if int(np.isin(tokens, decoder.special_ids).sum()) > expected or inside:
        raise SpecialTokenError("the tokenizer makes special tokens of the text; remove them from the row")

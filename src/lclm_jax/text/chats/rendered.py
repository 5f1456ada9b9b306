"""A chat as its template prints it, with the places of the replies that are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lclm_jax.text.chats.chat_template import ChatError
from lclm_jax.text.chats.loss_markers import LossMarkerError, is_trained_on, untrained_parts, without_markers
from lclm_jax.text.chats.replies import check_reply, reply_prompt
from lclm_jax.text.chats.special_strings import SpecialStrings
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, split_memory
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import ReadOnlyJson


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """The text of a chat."""

    text: str
    """With memory tags where the content of the messages has them."""
    trained: tuple[tuple[int, int], ...]
    """``[start, stop)`` characters with loss, in order: every reply that is trained on, its end token and what the
    template puts after it included, without the parts that its marks except."""
    content: str
    """Of the last message, the reply that the chat ends with."""
    reply_start: int
    """Character at which what is printed of this reply begins."""

    @property
    def reply(self) -> str:
        """What is printed of the last reply, to the end of the text."""
        return self.text[self.reply_start :]

    def with_span(self, start: int, stop: int) -> "RenderedChat":
        """The chat with the characters ``[start, stop)`` of the last reply as a memory span."""
        first, last = self.reply_start + start, self.reply_start + stop
        text = f"{self.text[:first]}{MEMORY_START}{self.text[first:last]}{MEMORY_END}{self.text[last:]}"

        def moved(place: int) -> int:
            return place + len(MEMORY_START) * (place > first) + len(MEMORY_END) * (place >= last)

        return replace(self, text=text, trained=tuple((moved(begin), moved(end)) for begin, end in self.trained))


def render_trained(
    messages: Sequence[ReadOnlyJson],
    decoder: Tokenizer,
    replies: Literal["last", "all"] = "last",
    tools: Sequence[ReadOnlyJson] | None = None,
    strings: SpecialStrings | None = None,
) -> RenderedChat:
    """Render ``messages``, which end with the assistant's; arguments and errors as of ``text.example.chat_outline``."""
    if not messages or messages[-1]["role"] != "assistant":
        role = messages[-1]["role"] if messages else None
        raise ChatError(f"a chat to train on ends with the assistant's reply, not with {role!r}; add it or a target")
    wanted = [is_trained_on(message) and message["role"] == "assistant" for message in messages]
    chat = [without_markers(message) for message in messages]
    whole = decoder.render_chat(chat, tools=tools)
    split_memory(whole)
    if strings is not None:
        strings.check(chat, tools, whole, lambda chat, tools: decoder.render_chat(chat, tools=tools))
    last, trained, reply_start = len(chat) - 1, [], len(whole)
    for end in [last] if replies == "last" else range(len(chat)):
        if not wanted[end]:
            continue
        answered = whole if end == last else decoder.render_chat(chat[: end + 1], tools=tools)
        prompt = reply_prompt(chat[: end + 1], answered, decoder, tools)
        if answered.startswith(prompt) and whole.startswith(answered):
            trained += _with_loss(messages[end], len(prompt), answered)
            reply_start = len(prompt)
            if strings is not None:
                check_reply(chat[: end + 1], answered.removeprefix(prompt), prompt, decoder, tools)
        elif end == last:
            raise ChatError(
                f"the chat template of {decoder.folder} renders the reply elsewhere than after its generation prompt;"
                " use a template whose prompt is a prefix of the whole chat"
            )
    return RenderedChat(whole, tuple(trained), chat[-1].get("content", ""), reply_start if wanted[last] else len(whole))


def _with_loss(reply: ReadOnlyJson, start: int, answered: str) -> list[tuple[int, int]]:
    """Characters of ``answered`` from ``start`` that have loss: all but the parts that the reply's marks except."""
    begin, ranges = start, []
    if parts := untrained_parts(reply):
        content, printed = reply["content"], answered[start:]
        if printed.count(content) != 1:
            raise LossMarkerError(
                f"marks on parts of {content!r:.60}, which the chat template prints {printed.count(content)} times;"
                " mark the whole message"
            )
        at = start + printed.index(content)
        for first, stop in parts:
            ranges.append((begin, at + first))
            begin = at + stop
    return [(first, stop) for first, stop in [*ranges, (begin, len(answered))] if first < stop]

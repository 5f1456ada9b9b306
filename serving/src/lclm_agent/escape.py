"""Foreign text made harmless: nothing in a document becomes a tag, a special token or a tool call of the chat.

Text of documents stands in messages, compressed or raw. Written as it is, it could open and close memory spans, end the
message (``<|im_end|>``) or look like a call. So a space is put behind the first character of every such string: it
stays readable, and it is no longer that string for any tokenizer, template or parser.
"""

import re

START, END, PLACEHOLDER = "<|memory_start|>", "<|memory_end|>", "<|memory|>"

_NAMES = (
    "tool_calls?|tool_response|tools?|think|function_calls?|begin_of_text|start_of_turn|end_of_turn|bos|eos|s|unk|pad"
)
_FOREIGN = re.compile(
    # <|...|> and DeepSeek's <｜...｜>, also cut off at the end of a text: what follows could complete it.
    rf"<(?=[|｜])|<(?=/?(?:{_NAMES})\b)|\[(?=/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\])|<(?=<SYS>>|</SYS>>)",
    re.IGNORECASE,
)
_SPECIAL = re.compile(r"<(?=[|｜])")
_LINE = re.compile(r"^([ \t]*)(EXPAND|ANSWER|FINAL)(?=:)", re.IGNORECASE | re.MULTILINE)
_SEGMENT = re.compile(r"^([ \t]*)(seg_)(?=\d+\b)", re.IGNORECASE | re.MULTILINE)


def escape(text: str) -> str:
    """``text`` for a message: tags, special tokens, calls, and lines that the protocols or segment lists begin with.

    Idempotent. Text without such strings comes back unchanged. Half characters (lone surrogates), which no request can
    carry, become question marks.
    """
    text = _FOREIGN.sub(lambda found: found.group() + " ", whole(text))
    text = _LINE.sub(r"\1\2 ", text) if _LINE.search(text) else text
    return _SEGMENT.sub(r"\1seg ", text)


def harmless(text: str) -> str:
    """A model's own words as they are repeated to it: it may have been talked into writing out a special token.

    Text without ``<|`` comes back unchanged, so the prefix of the chat stays what the server has cached.
    """
    return _SPECIAL.sub("< ", text)


def whole(text: str) -> str:
    """``text`` with question marks in the place of half characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def memory(text: str) -> str:
    """A span of ``text``, escaped, between memory tags: the served model reads it as latents."""
    return f"{START}{escape(text)}{END}"

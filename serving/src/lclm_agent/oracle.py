"""An oracle in the place of a model: it knows which segments hold the answers, and answers from their text alone."""

import re
from collections.abc import Sequence
from typing import Any

from lclm_agent.chat import FINAL, Message, Model, Reply, expand_call
from lclm_agent.tasks import Question


class Oracle:
    """Expands the needed segments of a question one after another; then says those answers that it has read raw.

    Args:
        question: with its answers and the segments that hold them.
        native: whether it calls the tool or writes ``EXPAND`` lines.
        steered: a model that is sent every request all the same, so that its usage is known; its replies are not used.
    """

    def __init__(self, question: Question, native: bool = True, steered: Model | None = None):
        self._question, self._native, self._steered = question, native, steered
        self._left = list(question.needed)
        self._calls = 0

    def complete(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, max_tokens: int) -> Reply:
        """The next turn."""
        usage = Reply("").usage if self._steered is None else self._steered.complete(messages, tools, 1).usage
        if self._left and (tools or not self._native):
            place = self._left.pop(0)
            self._calls += 1
            if self._native:
                return Reply("", (expand_call(self._calls, f"seg_{place + 1}"),), usage, "tool_calls")
            return Reply(f"EXPAND: {place + 1}", (), usage)
        read = "\n".join(str(one["content"]) for one in messages[1:] if one["role"] in ("tool", "user"))
        known = [answer for answer in self._question.answers if re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", read)]
        start = FINAL if self._native else "ANSWER:"
        return Reply(f"{start} {', '.join(known)}", (), usage)

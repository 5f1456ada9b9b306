"""A turn of a model in a context: it may expand past messages before it answers, or calls other tools."""

from collections.abc import Sequence
from typing import Any

from lclm_agent.chat import EXPAND, Model, Reply, assistant
from lclm_agent.context import Context
from lclm_agent.loop import USED_UP, Budget
from lclm_agent.protocols import segment_of


def take_turn(
    context: Context, model: Model, budget: Budget | None = None, tools: Sequence[dict[str, Any]] = ()
) -> Reply:
    """Send the conversation, expand what the model asks for, and return its reply, which joins the conversation.

    Args:
        context: ends with what is to be answered.
        model: what answers.
        budget: rounds that may expand, and tokens of a reply.
        tools: further tools. A reply that calls one is returned as it is; add each result as a ``tool`` message and
            take the next turn. Calls of ``expand`` beside it have their results already.
    """
    budget = budget or Budget()
    left = budget.rounds
    while True:
        offered = [EXPAND, *tools] if left or tools else None
        reply = model.complete(context.messages(), offered, budget.reply_tokens)
        context.add(assistant(reply))
        wanted = [call for call in reply.calls if call.name == "expand"]
        left -= 1
        for call in wanted:
            text = context.expand(segment_of(call.name, call.arguments)) if left >= 0 else USED_UP
            note = f"\n\n{USED_UP}" if left == 0 and call is wanted[-1] else ""
            context.add({"role": "tool", "tool_call_id": call.id, "content": text + note})
        if len(wanted) < len(reply.calls) or not wanted or left < 0:
            return reply

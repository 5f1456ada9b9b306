"""Skim and expand: an agent that reads documents as latents and asks for the text of what it needs.

It talks to a served LCLM by the OpenAI API, or to anything with ``complete`` (``lclm_agent.chat.Model``).
"""

from lclm_agent.chat import Call, Message, Model, Reply, Usage
from lclm_agent.errors import AgentError
from lclm_agent.escape import escape, memory
from lclm_agent.segments import Segment, cut, number_segments

__all__ = [
    "AgentError",
    "Call",
    "Message",
    "Model",
    "Reply",
    "Segment",
    "Usage",
    "cut",
    "escape",
    "memory",
    "number_segments",
]

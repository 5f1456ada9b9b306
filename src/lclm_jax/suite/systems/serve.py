"""What all workers share: requests on standard input, replies on standard output, one JSON object a line.

The first line holds the settings; the reply to it is ``{"ready": facts}`` or ``{"refused": message}``. Every later line
is a request, and its reply has the same ``id``. Standard library alone, as every environment can run it.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Protocol, TextIO

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject


class System(Protocol):
    """What a worker answers with."""

    facts: JsonObject
    """What the driver is told at the start: limits, versions, what cannot be measured."""

    def count(self, request: JsonObject) -> JsonObject:
        """``positions`` of the prompt in the model, and ``raw_tokens``, the tokens of the raw prompt."""

    def answer(self, request: JsonObject) -> JsonObject:
        """Answer, likelihood, times and sizes."""


def serve(make: Callable[[JsonObject], System]) -> None:
    """Run a worker until its input ends. What libraries print goes to standard error, so that no reply is garbled."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        system = make(json.loads(sys.stdin.readline()))
    except LclmError as error:
        _write(replies, {"refused": str(error)})
        return
    _write(replies, {"ready": system.facts})
    for line in sys.stdin:
        request = json.loads(line)
        reply: JsonObject = {"id": request["id"]}
        try:
            reply |= system.count(request) if request.get("count") else system.answer(request)
        except LclmError as error:
            reply["error"] = str(error)
        except Exception as error:  # noqa: BLE001 - one failed sample is a line of the report, whatever was raised
            reply["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        _write(replies, reply)


def _write(replies: TextIO, reply: JsonObject) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def prompt_of(request: JsonObject, context: str) -> str:
    """The user's message of a request without memory tags: with the context (``raw``), or without it (``none``)."""
    middle = request["context"] if context == "raw" else ""
    return request["instruction"] + middle + request["question"]

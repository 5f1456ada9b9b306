"""``lclm-agent play``: a page on which a document is pasted, skimmed as latents, timed, and asked about.

Plain HTML and the standard library's server: a page with three panes needs no framework, works without a network, and
installs nothing. All figures come from the served API: positions from ``usage``, windows and latents from ``/metrics``,
times from streamed replies. The page writes foreign text as text only.
"""

import importlib.resources
import json
import re
import secrets
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from lclm_agent.endpoint import Endpoint
from lclm_agent.errors import AgentError
from lclm_agent.loop import Budget, Conversation, Outcome
from lclm_agent.segments import Segment, cut, listing, number_segments

MAX_BYTES = 20_000_000
"""Of a request: a longer document is refused."""
_METRIC = re.compile(r"^lclm_(\w+?)(?:_total)? ([\d.e+]+)$", re.MULTILINE)
_QUESTION = "Say in a word what this is about."

Event = dict[str, Any]


class Playground:
    """What the page asks for, on one served model.

    Args:
        endpoint: the model.
        words: of a segment, at most.
        reply_tokens: of one reply, at most.
    """

    def __init__(self, endpoint: Endpoint, words: int = 384, reply_tokens: int = 256):
        self._endpoint, self._words, self._reply_tokens = endpoint, words, reply_tokens

    def read(self, values: dict[str, Any]) -> Iterator[Event]:
        """Cut a text into segments, and ask the server what they take, compressed (timed) and raw."""
        segments = self._segments(values)
        yield {
            "segments": [{"id": one.id, "text": one.text, "words": len(one.text.split())} for one in segments],
            "model": self._endpoint.model,
        }
        yield self._timed("first", listing(segments))
        try:
            yield {"raw": self._positions(listing(segments, compressed=False))}
        except AgentError as error:
            yield {"raw": None, "note": f"As text it does not fit: {error}"}

    def time(self, values: dict[str, Any]) -> Iterator[Event]:
        """Times to the first token of a text that ``read`` has sent: as text, and as latents that the server kept."""
        segments = self._segments(values)
        for name, compressed in (("raw", False), ("kept", True)):
            try:
                yield self._timed(name, listing(segments, compressed))
            except AgentError as error:
                yield {"timed": name, "note": str(error)}

    def ask(self, values: dict[str, Any]) -> Iterator[Event]:
        """Ask a question; each round as it comes, with the segments that it expands."""
        segments = self._segments(values)
        question = values.get("question")
        if not isinstance(question, str) or not question.strip():
            raise AgentError("there is no question; write one")
        budget = Budget(rounds=int(values.get("rounds", 5)), reply_tokens=self._reply_tokens)
        conversation = Conversation(self._endpoint, segments, str(values.get("protocol", "tools")), budget)
        outcome = Outcome(question)
        for round_ in conversation.rounds(question, outcome):
            yield {
                "reply": round_.reply.content,
                "expanded": list(round_.expanded),
                "prefilled": round_.reply.usage.prompt - round_.reply.usage.cached,
                "cached": round_.reply.usage.cached,
                "generated": round_.reply.usage.completion,
            }
        yield {"answer": outcome.answer}

    def _segments(self, values: dict[str, Any]) -> tuple[Segment, ...]:
        text = values.get("text")
        if not isinstance(text, str):
            raise AgentError("there is no text; paste a document")
        return number_segments(cut(text, self._words))

    def _timed(self, name: str, text: str) -> Event:
        """One prompt's time and cost; it begins with words that no other has, so no cache of prefixes shortens it."""
        before = self._counts()
        message = {"role": "user", "content": f"Note {secrets.token_hex(8)}.\n{text}\n{_QUESTION}"}
        found = self._endpoint.timed([message], 4)
        cost = {"timed": name, "ttft_seconds": found.ttft_seconds, "positions": found.reply.usage.prompt}
        return {**cost, **self._difference(before)}

    def _positions(self, text: str) -> int:
        message = {"role": "user", "content": f"Note {secrets.token_hex(8)}.\n{text}\n{_QUESTION}"}
        return self._endpoint.complete([message], None, 1).usage.prompt

    def _counts(self) -> dict[str, int]:
        try:
            return {name: int(float(value)) for name, value in _METRIC.findall(self._endpoint.get("/metrics"))}
        except AgentError:  # another server, without these counters
            return {}

    def _difference(self, before: dict[str, int]) -> dict[str, int]:
        after = self._counts()
        wanted = ("windows_requested", "windows_encoded", "windows_stored", "memory_tokens", "memory_latents")
        return {name: after[name] - before.get(name, 0) for name in wanted if name in after}


def server(playground: Playground, host: str, port: int) -> ThreadingHTTPServer:
    """The page's server, bound and not yet serving; raises ``AgentError`` if the port is taken."""

    class Handler(_Handler):
        actions: ClassVar = {"read": playground.read, "time": playground.time, "ask": playground.ask}

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise AgentError(f"cannot listen on {host}:{port} ({error}); choose another with --port") from None


class _Handler(BaseHTTPRequestHandler):
    """The page, and its three actions, each of which answers with a JSON object a line as it goes."""

    actions: ClassVar[dict[str, Any]] = {}

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing of each request."""

    def do_GET(self) -> None:
        """The page."""
        if self.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here but the page at /")
            return
        page = importlib.resources.files("lclm_agent").joinpath("play.html").read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self) -> None:
        """An action; foreign pages cannot call it, as browsers ask first before they send JSON elsewhere."""
        action = self.actions.get(self.path.removeprefix("/api/"))
        length = self.headers.get("Content-Length") or ""
        if action is None or self.headers.get("Content-Type") != "application/json":
            self._refuse(HTTPStatus.NOT_FOUND, "post JSON to /api/read, /api/time or /api/ask")
            return
        if not length.isdecimal() or int(length) > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the document is longer than {MAX_BYTES:,} bytes")
            return
        try:
            values = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            self._refuse(HTTPStatus.BAD_REQUEST, "the request is no JSON object")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        try:
            for event in action(values):
                self._line(event)
        except ConnectionError:  # the page was closed
            return
        except (ValueError, TypeError) as error:
            self._line({"error": str(error)})

    def _line(self, event: Event) -> None:
        self.wfile.write(json.dumps(event, ensure_ascii=True).encode() + b"\n")
        self.wfile.flush()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        data = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

"""A served model, by the OpenAI API: chat completions, and nothing else that a server must have."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from lclm_agent.chat import Call, Message, Reply, Usage
from lclm_agent.errors import AgentError
from lclm_agent.escape import whole

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_SHOWN = 300


@dataclass(frozen=True)
class Timed:
    """A reply, and when its first piece came."""

    reply: Reply
    ttft_seconds: float
    seconds: float


class Endpoint:
    """A model at an address.

    Args:
        url: such as ``http://localhost:8000/v1``.
        model: its name there; None: the only one that the server lists.
        api_key: sent as a bearer token, if given.
        timeout: seconds that a reply may take.
        retries: how often a request is repeated that failed for a reason that may pass.
        pause: seconds before the first repetition; each further one doubles it.

    Raises:
        AgentError: the address is none, the server does not answer, or it does not serve the model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600,
        retries: int = 2,
        pause: float = 1.0,
    ):
        if not _is_address(url):
            raise AgentError(f"url={url!r} is no web address; write http://HOST:PORT/v1")
        self.url, self._retries, self._pause = url.rstrip("/"), retries, pause
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.Client(timeout=timeout, headers=headers)
        self.model = model or self._only_model()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def complete(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, max_tokens: int) -> Reply:
        """The next turn, greedily; raises ``AgentError`` for what the server refuses, with its reason."""
        body = self._body(messages, tools, max_tokens)
        values = self._json(self._send("POST", "chat/completions", body).content)
        try:
            choice = values["choices"][0]
            message = choice["message"]
            calls = tuple(_call(one, number) for number, one in enumerate(message.get("tool_calls") or (), 1))
            content, finish = whole(str(message.get("content") or "")), str(choice["finish_reason"] or "")
            return Reply(content, calls, _usage(values.get("usage")), finish)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise AgentError(f"{self.url} sent no chat completion ({type(error).__name__}: {error})") from None

    def timed(self, messages: Sequence[Message], max_tokens: int) -> Timed:
        """The same without tools, streamed, with the time to its first piece."""
        body = self._body(messages, None, max_tokens) | {"stream": True, "stream_options": {"include_usage": True}}
        start = time.perf_counter()
        first, pieces, finish, usage = 0.0, [], "", Usage()
        for event in self._events(body):
            usage = _usage(event["usage"]) if event.get("usage") else usage
            for choice in event.get("choices", ())[:1]:
                piece = choice.get("delta", {}).get("content") or ""
                first = first or (time.perf_counter() - start if piece or choice.get("finish_reason") else 0.0)
                pieces.append(piece)
                finish = choice.get("finish_reason") or finish
        seconds = time.perf_counter() - start
        return Timed(Reply("".join(pieces), (), usage, finish), first or seconds, seconds)

    def get(self, path: str) -> str:
        """A page of the server outside of its API, such as ``/metrics``; raises ``AgentError``."""
        root = self.url.removesuffix("/v1")
        return self._send("GET", f"{root}{path}").text

    def _body(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, max_tokens: int) -> dict:
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        return body | ({"tools": list(tools)} if tools else {})

    def _only_model(self) -> str:
        values = self._json(self._send("GET", "models").content)
        names = [str(one.get("id")) for one in values.get("data", ()) if isinstance(one, dict)]
        if len(names) != 1:
            raise AgentError(f"{self.url} serves {', '.join(names) or 'no model by name'}; name one as model")
        return names[0]

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        address = path if path.startswith("http") else f"{self.url}/{path}"
        for attempt in range(self._retries + 1):
            try:
                answer = self._client.request(method, address, json=body)
                if answer.status_code < 400:
                    return answer
                message, passes = _refusal(address, answer), answer.status_code in _AGAIN
            except httpx2.HTTPError as error:
                message, passes = _silence(address, error), True
            if attempt == self._retries or not passes:
                raise AgentError(message)
            time.sleep(self._pause * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        address = f"{self.url}/chat/completions"
        try:
            with self._client.stream("POST", address, json=body) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise AgentError(_refusal(address, answer))
                for line in answer.iter_lines():
                    if line.startswith("data:") and line != "data: [DONE]":
                        event = self._json(line[5:].encode())
                        if "error" in event:
                            raise AgentError(f"{address}: {str(event['error'])[:_SHOWN]}")
                        yield event
        except httpx2.HTTPError as error:
            raise AgentError(_silence(address, error)) from None

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise AgentError(f"{self.url} sent something that is no JSON object: {data[:100]!r}; is it an OpenAI API?")
        return values


def _is_address(url: str) -> bool:
    try:
        found = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        return False
    return found.scheme in ("http", "https") and bool(found.host)


def _refusal(address: str, answer: httpx2.Response) -> str:
    said = " ".join(answer.text.split())[:_SHOWN]
    return f"{address} answered {answer.status_code}: {said}"


def _silence(address: str, error: Exception) -> str:
    return f"{address} does not answer ({str(error) or type(error).__name__}); is the server running?"


def _call(values: dict[str, Any], number: int) -> Call:
    function = values["function"]
    parts = (values.get("id") or f"call_{number}", function["name"], function.get("arguments") or "")
    return Call(*(whole(str(one)) for one in parts))


def _usage(values: dict[str, Any] | None) -> Usage:
    values = values or {}
    details = values.get("prompt_tokens_details") or {}
    return Usage(
        int(values.get("prompt_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(values.get("completion_tokens") or 0),
    )

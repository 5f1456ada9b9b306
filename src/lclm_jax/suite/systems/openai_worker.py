"""Any endpoint with an OpenAI API: answers through chat/completions, plain text and likelihood through completions.

Standard library alone. The reply is streamed, so that the time to the first token is that of a user.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from lclm_jax.errors import LclmError
from lclm_jax.suite.systems.serve import prompt_of, serve
from lclm_jax.types import JsonObject

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_START, _END = "<|memory_start|>", "<|memory_end|>"


class OpenaiSystem:
    """One model at an endpoint.

    Args:
        settings: ``url``, ``model``, ``context``, ``api_key_variable``, ``timeout_seconds``, ``retries``.

    Raises:
        LclmError: the endpoint does not answer, refuses the key, or does not serve the model.
    """

    def __init__(self, settings: JsonObject):
        self._settings, self._url = settings, settings["url"].rstrip("/")
        self._context = settings["context"]
        if not self._url.startswith(("http://", "https://")):
            raise LclmError(f"url={settings['url']} is no web address; write http://HOST:PORT/v1")
        if self._context == "truncated":
            raise LclmError("an endpoint has no tokenizer to truncate by; use context: raw, memory or none")
        variable = settings.get("api_key_variable")
        key = os.environ.get(variable, "") if variable else ""
        if variable and not key:
            raise LclmError(f"the environment variable {variable} (api_key_variable) is not set; set it to the key")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        served = self._served()
        if served and settings["model"] not in served:
            raise LclmError(f"{self._url} does not serve {settings['model']!r}; it serves {', '.join(served)}")
        self._echoes = True
        self.facts: JsonObject = {"endpoint": self._url, "served": served}

    def count(self, request: JsonObject) -> JsonObject:
        """Unknown before the endpoint has answered."""
        return {}

    def answer(self, request: JsonObject) -> JsonObject:
        """Answer and, of plain text, likelihood."""
        reply: JsonObject = {}
        # The rendering of a chat is the endpoint's secret, so only plain text can be followed by the gold answer.
        if request.get("gold") and not request["chat"] and self._echoes:
            reply |= self._likelihood(request)
        if request.get("generate"):
            reply |= self._generate(request)
        return reply

    def _generate(self, request: JsonObject) -> JsonObject:
        text, chat = self._text(request), request["chat"]
        body: JsonObject = {
            "model": self._settings["model"],
            "max_tokens": request["max_new_tokens"],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        start = time.perf_counter()
        pieces, first, finish = [], 0.0, None
        usage: JsonObject = {}
        for event in self._stream("chat/completions" if chat else "completions", body):
            usage = event.get("usage") or usage
            for choice in event.get("choices", ())[:1]:
                piece = (choice.get("delta", {}).get("content") if chat else choice.get("text")) or ""
                if piece:
                    first = first or time.perf_counter() - start
                    pieces.append(piece)
                finish = choice.get("finish_reason") or finish
        seconds = time.perf_counter() - start
        if finish is None:
            raise LclmError("the reply broke off before it was finished; the endpoint or the network ended it")
        return {
            "answer": "".join(pieces),
            "finish": "length" if finish == "length" else "stop",
            "new_tokens": usage.get("completion_tokens", len(pieces)),
            "positions": usage.get("prompt_tokens"),
            "ttft_seconds": first or seconds,
            "seconds": seconds,
        }

    def _likelihood(self, request: JsonObject) -> JsonObject:
        """From the log-probabilities of an echoed prompt; nothing where the endpoint gives none."""
        prompt = self._text(request)
        body = {"model": self._settings["model"], "prompt": prompt + request["gold"], "max_tokens": 1}
        body |= {"temperature": 0, "echo": True, "logprobs": 1}
        try:
            found = self._post("completions", body)["choices"][0]["logprobs"]
            end = len(prompt) + len(request["gold"])
            pairs = zip(found["text_offset"], found["token_logprobs"], strict=True)
            values = [value for place, value in pairs if len(prompt) <= place < end]
        except (LclmError, KeyError, TypeError, IndexError, ValueError):
            self._echoes = False
            return {"note": "the endpoint gives no log-probabilities of an echoed prompt: no likelihood"}
        if not values or None in values:
            return {}
        return {"nll": -sum(values), "gold_tokens": len(values)}

    def _text(self, request: JsonObject) -> str:
        if self._context == "memory" and request["context"]:
            text = f"{request['instruction']}{_START}{request['context']}{_END}{request['question']}"
        else:
            text = prompt_of(request, "none" if self._context == "none" else "raw")
        return text + request["prefix"]

    def _served(self) -> list[str]:
        """Names of the models; none if the endpoint does not list them."""
        try:
            found = self._get("models")
        except LclmError as error:
            if " 404" in str(error) or " 405" in str(error):
                return []
            raise
        return [str(one.get("id")) for one in found.get("data", ()) if isinstance(one, dict)]

    def _get(self, path: str) -> JsonObject:
        with self._open(self._request(path)) as reply:
            return self._json(reply.read())

    def _post(self, path: str, body: JsonObject) -> JsonObject:
        with self._open(self._request(path, body)) as reply:
            return self._json(reply.read())

    def _stream(self, path: str, body: JsonObject) -> Iterator[JsonObject]:
        """Events of a streamed reply."""
        try:
            with self._open(self._request(path, body)) as reply:
                for raw in reply:
                    line = raw.decode("utf-8", "replace").strip()
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        event = self._json(line[5:].encode())
                        if "error" in event:
                            raise LclmError(f"{self._url}: {event['error']}")
                        yield event
        except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
            raise LclmError(f"{self._url} stopped in the middle of a reply: {error or type(error).__name__}") from None

    def _request(self, path: str, body: JsonObject | None = None) -> urllib.request.Request:
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(f"{self._url}/{path}", data, self._headers)  # noqa: S310 - checked at the start

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open ``request``, again after failures that may pass, with longer and longer pauses."""
        tries = 1 + int(self._settings["retries"])
        for attempt in range(1, tries + 1):
            try:
                return urllib.request.urlopen(request, timeout=self._settings["timeout_seconds"])  # noqa: S310
            except urllib.error.HTTPError as error:
                said = " ".join(error.read().decode("utf-8", "replace").split())[:300]
                message, passes = f"{request.full_url} answered {error.code}: {said}", error.code in _AGAIN
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                message, passes = f"{request.full_url} does not answer ({reason}); is the server running?", True
            if attempt == tries or not passes:
                raise LclmError(f"{message} ({attempt} tries)" if attempt > 1 else message)
            time.sleep(min(2.0 ** (attempt - 1), 30.0) * self._settings.get("pause", 1.0))
        raise AssertionError("the last try returns or raises")

    def _json(self, text: bytes) -> JsonObject:
        try:
            value = json.loads(text)
        except ValueError:
            raise LclmError(f"{self._url} sent something that is not JSON: {text[:100]!r}") from None
        if not isinstance(value, dict):
            raise LclmError(f"{self._url} sent {type(value).__name__} instead of an object")
        return value


if __name__ == "__main__":
    serve(OpenaiSystem)

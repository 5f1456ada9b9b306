"""The worker of OpenAI endpoints against a server of our own that misbehaves on request."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.suite.systems.openai_worker import OpenaiSystem


class Endpoint(BaseHTTPRequestHandler):
    """Says the user's text in capitals, a word at a time; ``script`` holds statuses to fail with first."""

    script: ClassVar[list] = []
    asked: ClassVar[list] = []
    echoes = True

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._send(200, {"data": [{"id": "small"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body, self.headers.get("Authorization")))
        status = self.script.pop(0) if self.script else 200
        if status != 200:
            self._send(status, {"error": {"message": "no room"}})
        elif body.get("echo"):
            self._echo(body["prompt"])
        else:
            self._answer(body)

    def _echo(self, text):
        """Every character is a token of as many nats as its place."""
        if not self.echoes:
            self._send(400, {"error": "echo is not supported"})
            return
        places = list(range(len(text) + 1))
        values = [None, *(-float(place) for place in places[1:])]
        logprobs = {"text_offset": places, "token_logprobs": values}
        self._send(200, {"choices": [{"text": text, "logprobs": logprobs}]})

    def _answer(self, body):
        text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        words = text.upper().split(" ")[: body["max_tokens"]]
        self.send_response(200)
        self.end_headers()
        for number, word in enumerate(words):
            piece = word if number == 0 else " " + word
            choice = {"delta": {"content": piece}} if "messages" in body else {"text": piece}
            self._event({"choices": [choice | {"finish_reason": None}]})
        if "BREAK" not in words:
            cut = len(words) == body["max_tokens"]
            self._event({"choices": [{"delta": {}, "finish_reason": "length" if cut else "stop"}]})
            self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words)}})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value):
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _send(self, status, value):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    Endpoint.script, Endpoint.asked, Endpoint.echoes = [], [], True
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def system(url, **changes):
    settings = {"url": url, "model": "small", "context": "raw", "timeout_seconds": 5, "retries": 2, "pause": 0.001}
    return OpenaiSystem(settings | changes)


def request(**changes):
    values = {"id": "a", "instruction": "say ", "context": "one", "question": " two", "prefix": "", "gold": ""}
    return values | {"max_new_tokens": 9, "chat": True, "generate": True} | changes


def test_streamed_answer_and_what_was_sent(url, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    found = system(url, context="memory", api_key_variable="A_KEY").answer(request())
    assert found["answer"] == "SAY <|MEMORY_START|>ONE<|MEMORY_END|> TWO"
    assert (found["finish"], found["new_tokens"], found["positions"]) == ("stop", 3, 7)
    assert 0 < found["ttft_seconds"] <= found["seconds"]
    path, body, key = Endpoint.asked[0]
    assert (path, key, body["temperature"]) == ("/v1/chat/completions", "Bearer secret", 0)


def test_cut_answers_are_said(url):
    assert system(url).answer(request(max_new_tokens=2))["finish"] == "length"


def test_passing_failures_are_tried_again_and_others_are_not(url):
    Endpoint.script = [503, 429]
    assert system(url).answer(request())["answer"] == "SAY ONE TWO"
    Endpoint.script = [500, 500, 500]
    with pytest.raises(LclmError, match=r"chat/completions answered 500: .*no room.* \(3 tries\)"):
        system(url).answer(request())
    Endpoint.script = [400]
    with pytest.raises(LclmError, match=r"answered 400: .*no room"):
        system(url).answer(request())
    assert len(Endpoint.asked) == 3 + 3 + 1


def test_a_reply_that_breaks_off_is_no_answer(url):
    with pytest.raises(LclmError, match="broke off before it was finished"):
        system(url).answer(request(question=" break"))


def test_likelihood_of_plain_text_from_an_echo(url):
    one = system(url)
    found = one.answer(request(chat=False, gold="ab", generate=False))
    # The prompt has 11 characters, so the gold answer's stand at 11 and 12.
    assert found == {"nll": 23.0, "gold_tokens": 2}
    assert one.answer(request(gold="ab", generate=False)) == {}
    Endpoint.echoes = False
    assert "no likelihood" in one.answer(request(chat=False, gold="ab", generate=False))["note"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "large"}, "does not serve 'large'; it serves small"),
        ({"api_key_variable": "NO_KEY"}, "environment variable NO_KEY"),
        ({"context": "truncated"}, "no tokenizer to truncate by"),
        ({"url": "file:///etc/passwd"}, "is no web address"),
        ({"url": "http://127.0.0.1:9/v1"}, r"does not answer \(.*refused.*\); is the server running"),
    ],
)
def test_what_is_known_before_the_first_answer(url, changes, message):
    with pytest.raises(LclmError, match=message):
        system(**{"url": url, **changes})

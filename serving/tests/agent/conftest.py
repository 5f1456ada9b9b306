"""A server with the chat part of the OpenAI API whose replies a script gives; it notes what it is asked."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Scripted:
    """What a test tells the server, and sees of it."""

    def __init__(self):
        self.script = []
        """Replies in turn: text, a list of segment ids to expand, or (status, body) of a failure."""
        self.bodies = []
        self.models = ["tiny"]
        self.url = ""

    def next(self, body):
        self.bodies.append(body)
        step = self.script.pop(0) if self.script else "FINAL: nothing"
        if isinstance(step, tuple):
            return step
        message = {"role": "assistant", "content": step if isinstance(step, str) else None}
        if not isinstance(step, str):
            message["tool_calls"] = [
                {"id": f"id-{len(self.bodies)}-{i}", "type": "function", "function": {"name": name, "arguments": text}}
                for i, (name, text) in enumerate(map(call, step))
            ]
        text = json.dumps(body["messages"])
        usage = {"prompt_tokens": len(text), "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
        finish = "stop" if isinstance(step, str) else "tool_calls"
        return 200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def call(step):
    """``seg_1``, or a pair of tool and arguments as they are."""
    return step if isinstance(step, tuple) else ("expand", json.dumps({"segment_id": step}))


@pytest.fixture
def endpoint():
    scripted = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_GET(self):
            self.answer(200, {"data": [{"id": name} for name in scripted.models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body.get("stream"):
                self.stream(body)
            else:
                self.answer(*scripted.next(body))

        def stream(self, body):
            status, values = scripted.next(body)
            if status != 200:
                self.answer(status, values)
                return
            events = [
                {"choices": [{"delta": {"content": word}}]} for word in values["choices"][0]["message"]["content"]
            ]
            events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": values["usage"]}]
            data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
            self.answer(200, data)

        def answer(self, status, values):
            data = values if isinstance(values, bytes) else json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    scripted.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield scripted
    server.shutdown()
    server.server_close()

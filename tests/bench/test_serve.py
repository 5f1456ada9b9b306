"""The benchmark of a server, with a server that only keeps time."""

import json

import pytest
from click.testing import CliRunner

from lclm_jax.bench import untrained
from lclm_jax.cli.main import cli
from lclm_jax.errors import LclmError
from lclm_jax.interop.load import read_model

SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

if "--fail" in sys.argv:
    sys.exit("(EngineCore) ERROR ValueError: no such option\\nRuntimeError: See root cause above")
known = set()

class Handler(BaseHTTPRequestHandler):
    def reply(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(b'{"version": "0"}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/reset_"):
            known.clear()
            return self.reply(b"")
        text = body["prompt"]
        span = "<|memory_start|>" in text
        document = text.split("\\nWh")[0]
        time.sleep(0.002 if document in known else 0.02 if span else 0.06)
        known.add(document)
        event = b'data: {"choices": [{"text": "x"}]}\\n\\n' * body["max_tokens"]
        self.reply(event + b'data: {"choices": [], "usage": {"prompt_tokens": 40}}\\n\\ndata: [DONE]\\n\\n')

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A stand-in for vLLM, and little text."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(untrained, "_TEXT_BYTES", 100_000)
    return tmp_path


def bench(folder, *options):
    arguments = ["bench", "serve", "--shape", "demo", "--ratio", "4", "--length", "64", "--length", "32"]
    arguments += ["--new-tokens", "3", "--folder", str(folder / "out"), "--json", str(folder / "found.json"), *options]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output, json.loads((folder / "found.json").read_text())


def test_every_way_is_timed_on_documents_that_are_new(environment):
    shown, found = bench(environment, "--repeats", "2")
    (model,) = found["models"]
    assert [row["tokens"] for row in model["rows"]] == [64, 32]
    for row in model["rows"]:
        assert row["raw"]["first_token_s"] > row["cold"]["first_token_s"] > row["raw_again"]["first_token_s"]
        assert row["cold_again"]["first_token_s"] < 0.02 <= row["stored"]["first_token_s"]  # caches were emptied
        assert row["share_of_flops"] == pytest.approx(row["speedup"] / row["flops"])
        assert 1 < row["speedup"] < 6 and row["raw"]["positions"] == 40
    assert set(model["memory"]) == {"raw", "cold", "stored"}
    assert "of what operations promise" in shown and "compressed, second question" in shown
    folder = environment / "out" / "demo-4x"
    assert read_model(folder).ratio == 4
    changed = (folder / "config.json").stat().st_mtime_ns
    bench(environment, "--repeats", "1", "--no-memory")
    assert (folder / "config.json").stat().st_mtime_ns == changed


def test_a_server_that_does_not_start_is_named(environment):
    for options, message in (
        (["--option=--fail"], "no such option"),
        (["--python", "/no/python"], "environment with vLLM"),
        (["--length", "100000"], "positions"),
    ):
        with pytest.raises(LclmError, match=message):
            bench(environment, "--no-memory", *options)

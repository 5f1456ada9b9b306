"""Real servers of an export: interfaces, counted work, the store and what can happen to it, hostile input."""

import json
import os
import signal
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.tiny_exports import PROMPTS, SPAN, tiny_export
from tests.vllm.server import NEW_TOKENS, Server

from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling

DOCUMENT = "".join(f"line {number}: x = {number * 7}\n" for number in range(24))
"""About twenty windows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_export("mean", tmp_path_factory.mktemp("server") / "model")


@pytest.fixture(scope="module")
def generator(folder):
    return Generator.from_folder(folder)


@pytest.fixture(scope="module")
def answers(generator):
    """Name -> 32 greedy tokens of the JAX generator."""
    found = generator.generate(list(PROMPTS.values()), Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    return {name: list(answer.ids) for name, answer in zip(PROMPTS, found, strict=True)}


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """One server with a store, small blocks, prefix caching and chunks that cut spans."""
    base = tmp_path_factory.mktemp("log")
    options = ["--block-size", "32", "--max-num-batched-tokens", "64", "--enable-prefix-caching"]
    with Server(folder, base / "log", *options, store=str(base / "latents.db")) as running:
        yield running


def work(server, prompt):
    """(windows in the prompt, encoded, from the store) of one request."""
    before = server.metrics()
    server.ask(prompt)
    after = server.metrics()
    names = ("windows_requested", "windows_encoded", "windows_stored")
    return tuple(after[name] - before[name] for name in names)


def windows(generator, text):
    return -(-len(generator.encoder_tokenizer.encode(text)) // generator.model.window)


def test_http_gives_the_tokens_of_the_jax_generator(server, generator, answers):
    for name, prompt in PROMPTS.items():
        choice = server.ask(prompt)
        assert choice["prompt_token_ids"] == generator.example(prompt).tokens.tolist(), name
        assert choice["token_ids"] == answers[name], name


def test_many_requests_at_once_do_not_mix(server, answers):
    names = [*PROMPTS] * 3
    with ThreadPoolExecutor(36) as pool:
        found = list(pool.map(lambda name: server.ask(PROMPTS[name])["token_ids"], names))
    assert found == [answers[name] for name in names]


def test_a_document_is_encoded_once_and_a_grown_one_where_it_grew(server, generator):
    first = windows(generator, DOCUMENT)
    assert work(server, SPAN.format(DOCUMENT) + "A?") == (first, first, 0)
    assert work(server, SPAN.format(DOCUMENT) + "Another question?") == (first, 0, 0)
    grown = DOCUMENT + "one more line\n"
    requested, encoded, stored = work(server, SPAN.format(grown) + "A?")
    assert requested == windows(generator, grown) and 1 <= encoded <= 2 and stored <= 1


def test_responses_streams_and_parts_of_text(server, generator):
    text = SPAN.format("x = 1") + " and?"
    (wanted,) = generator.generate([[{"role": "user", "content": text}]], Sampling(max_new_tokens=8, stop_ids=()))
    whole = server.ask([{"role": "user", "content": text}], max_tokens=8)
    parts = server.ask([{"role": "user", "content": [{"type": "text", "text": text}]}], max_tokens=8)
    assert whole["token_ids"] == parts["token_ids"] == list(wanted.ids)
    status, answer = server.post("/v1/responses", {"input": text, "temperature": 0, "max_output_tokens": 8})
    assert status == 200 and answer["usage"]["input_tokens"] == len(whole["prompt_token_ids"])
    body = {"model": "lclm", "prompt": text, "max_tokens": 4, "temperature": 0, "stream": True}
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        received = b"".join(iter(lambda: client.recv(4096), b""))
    assert b"data: [DONE]" in received


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <|memory_start|> b", "never closed"),
        ("a <|memory_end|> b", "closes no span"),
        (SPAN.format(""), "is empty"),
        (SPAN.format(SPAN.format("a")), "do not nest"),
        ("<|memory|>", "placeholders are filled in"),
        (SPAN.format("word " * 4000), "positions for text"),
        (SPAN.format("x") * 100_000, "positions for text"),
        (SPAN.format("0123456789" * 1_000_000), "positions for text"),
    ],
    ids=["unclosed", "unopened", "empty", "nested", "placeholder", "long", "100,000 spans", "10 MB"],
)
def test_hostile_text_is_status_400_everywhere(server, text, message):
    tool = [{"role": "user", "content": "Read."}, {"role": "tool", "content": text, "tool_call_id": "1"}]
    bodies = [("/v1/completions", {"prompt": text}), ("/v1/chat/completions", {"messages": tool})]
    for path, body in bodies[: 1 if len(text) > 10**6 else 2]:
        status, answer = server.post(path, body | {"max_tokens": 1})
        assert status == 400 and message in json.dumps(answer), answer
    assert server.healthy()


def test_requests_that_go_away_leave_a_healthy_server(server, answers):
    body = json.dumps({"model": "lclm", "prompt": SPAN.format(DOCUMENT[::-1]) + "?", "max_tokens": 200}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
    assert server.ask(PROMPTS["span"])["token_ids"] == answers["span"]
    assert server.healthy()


def test_a_store_answers_for_a_server_that_was_killed(folder, generator, answers, tmp_path):
    store = tmp_path / "latents.db"
    prompt = SPAN.format(DOCUMENT) + "?"
    count = windows(generator, DOCUMENT)
    with Server(folder, tmp_path / "first", store=str(store)) as first:
        assert work(first, prompt) == (count, count, 0)
        wanted = first.ask(prompt)["token_ids"]
        killer = threading.Timer(0.05, lambda: os.killpg(first.process.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises((OSError, ValueError)):
            while True:
                first.ask(SPAN.format(os.urandom(40).hex()) + "?", max_tokens=1)
        killer.join()
    with sqlite3.connect(store) as damaged:
        keys = [key for (key,) in damaged.execute("SELECT key FROM latents ORDER BY created, key LIMIT 5")]
        damaged.execute("UPDATE latents SET data = zeroblob(length(data)) WHERE key = ?", keys[:1])
        damaged.execute("DELETE FROM latents WHERE key = ?", keys[1:2])
    with Server(folder, tmp_path / "second", store=str(store)) as second:
        requested, encoded, stored = work(second, prompt)
        assert (requested, encoded, stored) == (count, 2, count - 2)
        assert second.metrics()["store_damaged"] == 1
        assert second.ask(prompt)["token_ids"] == wanted
        os.truncate(store, 0)
        assert second.ask(PROMPTS["span"])["token_ids"] == answers["span"]
        for file in tmp_path.glob("latents.db*"):
            file.unlink()
        assert second.ask(PROMPTS["twin"])["token_ids"] == answers["twin"]
        assert second.healthy()

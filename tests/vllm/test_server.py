"""A real server of an export: interfaces, counted work, hostile input."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.tiny_exports import PROMPTS, SPAN
from tests.vllm.server import DOCUMENT, Server, greedy, windows, work

from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling

CALLS = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + (call.function.arguments | tojson) + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
"""The chat template of the exports, with the arguments of tool calls."""


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """One server with a store, small blocks, prefix caching and chunks that cut spans."""
    base = tmp_path_factory.mktemp("log")
    options = ["--block-size", "32", "--max-num-batched-tokens", "64", "--enable-prefix-caching"]
    options += ["--trust-request-mm-kwargs", "--enable-prompt-tokens-details"]
    for part in (folder, folder / "decoder"):
        (part / "chat_template.jinja").write_text(CALLS)
    with Server(folder, base / "log", *options, store=str(base / "latents.db")) as running:
        yield running


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


def test_a_request_asks_for_a_ratio_and_is_told_its_latents(server, folder):
    text = SPAN.format(DOCUMENT[:150]) + " and?"
    chat = [{"role": "user", "content": text}]
    for ratio, prompt in ((8, text), (16, chat), (1, chat)):
        other = Generator.from_folder(folder, ratio=ratio)
        choice = server.ask(prompt, mm_processor_kwargs={"compression_ratio": ratio})
        assert choice["prompt_token_ids"] == other.example(prompt).tokens.tolist()
        assert choice["token_ids"] == greedy(other, prompt)
    for ratio in (0, 5, "many"):
        body = {"messages": chat, "mm_processor_kwargs": {"compression_ratio": ratio}}
        status, answer = server.post("/v1/chat/completions", body)
        assert status == 400 and "divides the window" in json.dumps(answer), answer
    before = server.metrics()
    _, answer = server.post("/v1/chat/completions", {"messages": chat, "max_tokens": 1})
    counted = {name: value - before[name] for name, value in server.metrics().items()}
    assert answer["usage"]["prompt_tokens_details"]["multimodal_tokens"] == {"memory": counted["memory_latents"]}
    assert answer["usage"]["prompt_tokens"] == counted["memory_latents"] + counted["text_tokens"]
    assert counted["memory_latents"] == -(-counted["memory_tokens"] // 4)
    assert server.metrics()["windows_cached"] > 0


def test_tags_in_arguments_of_tool_calls_and_in_tool_results(server, generator):
    def chat(arguments, result):
        call = {"id": "1", "type": "function", "function": {"name": "read", "arguments": arguments}}
        return [
            {"role": "user", "content": "Read."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result, "tool_call_id": "1"},
        ]

    values = {"text": SPAN.format('a "quoted" line\n and another'), "number": 1}
    prompt = chat(values, SPAN.format("return 7"))
    choice = server.ask(chat(json.dumps(values), SPAN.format("return 7")))
    example = generator.example(prompt)
    assert len(example.spans) == 2
    assert choice["prompt_token_ids"] == example.tokens.tolist()
    assert choice["token_ids"] == greedy(generator, prompt)
    for arguments, result in (({"a": "<|memory_start|>"}, "x"), ({"a": "<|memory_end|>"}, "x"), ({}, "<|memory|>")):
        status, answer = server.post("/v1/chat/completions", {"messages": chat(json.dumps(arguments), result)})
        assert status == 400, answer
    assert server.healthy()


HOSTILE = {
    "unclosed": ("a <|memory_start|> b", "never closed"),
    "unopened": ("a <|memory_end|> b", "closes no span"),
    "empty": (SPAN.format(""), "is empty"),
    "nested": (SPAN.format(SPAN.format("a")), "do not nest"),
    "placeholder": ("<|memory|>", "placeholders are filled in"),
    "long": (SPAN.format("word " * 4000), "positions for text"),
    "100,000 windows": (SPAN.format("x") * 100_000, "positions for text"),
    "10 MB": (SPAN.format("0123456789" * 1_000_000), "than the 2,048 tokens for which the model has positions"),
}


def send_hostile(server, text, message):
    tool = [{"role": "user", "content": "Read."}, {"role": "tool", "content": text, "tool_call_id": "1"}]
    bodies = [("/v1/completions", {"prompt": text}), ("/v1/chat/completions", {"messages": tool})]
    for path, body in bodies[: 1 if len(text) > 10**6 else 2]:
        status, answer = server.post(path, body | {"max_tokens": 1})
        assert status == 400 and message in json.dumps(answer), answer
    assert server.healthy()


def go_away(server, number):
    """Send a prompt with many windows and leave before the answer."""
    prompt = SPAN.format(f"{number} {DOCUMENT[::-1]}") + "?"
    body = json.dumps({"model": "lclm", "prompt": prompt, "max_tokens": 200}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        time.sleep(0.02 * number)  # in the queue, while it is encoded, while it is answered


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_status_400_everywhere(server, name):
    send_hostile(server, *HOSTILE[name])


def test_requests_that_go_away_leave_a_healthy_server(server, answers):
    for number in range(8):
        go_away(server, number)
    assert server.ask(PROMPTS["span"])["token_ids"] == answers["span"]
    assert server.healthy()


def test_memory_returns_to_what_it_was(server, answers):
    """The first round of hostile input and of cancelled requests is above: allocators have what they need."""
    before = server.memory()
    for round_number in range(2):
        for name in HOSTILE:
            send_hostile(server, *HOSTILE[name])
        for number in range(8):
            go_away(server, 10 * round_number + number % 3)
    assert server.ask(PROMPTS["span"])["token_ids"] == answers["span"]
    assert server.memory() - before < 64e6


def test_an_item_is_sent_without_the_places_of_all_others():
    """A request of n windows is handed from process to process: each field of an item must be of constant size."""
    from lclm_serving.vllm_plugin.processing import LclmMultiModalProcessor

    fields = LclmMultiModalProcessor._get_mm_fields_config(None, {}, {})
    ids = [torch.arange(16)] * 512
    for key, data in (("memory_ids", ids), ("memory_sizes", torch.full((512,), 16))):
        elements = fields[key].build_elems(key, data)
        assert len(elements) == 512 and not hasattr(elements[0].field, "slices")

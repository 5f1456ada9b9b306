"""Prompt embeddings on disk: equal to the Generator's, resumed after a kill, errors by line."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

from lclm_jax.cli.model import encode
from lclm_jax.errors import LclmError
from lclm_jax.inference import embeddings
from lclm_jax.inference.embeddings import Reading, encode_prompts
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.prompts import PromptError, read_prompts
from lclm_jax.inference.stream import TensorStream

SPAN = "<|memory_start|>{}<|memory_end|>"
CHAT = [{"role": "user", "content": SPAN.format("abc") + " and " + SPAN.format("def ghi") + "?"}]
LINES = [
    {"prompt": "plain words"},
    {"prompt": "see " + SPAN.format("a few words that are read by the encoder " * 3), "id": "long", "answer": [7]},
    {"messages": CHAT, "id": "chat"},
    {"prompt": CHAT, "id": 12},
]


def write(path, lines):
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    return path


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", LINES)


def test_tensors_and_metadata(exported, generator, prompts, tmp_path):
    out, said = tmp_path / "to" / "embeds.safetensors", []
    two = Reading(batch_windows=2)
    records = encode_prompts(exported, prompts, out, reading=two, progress=lambda *values: said.append(values))
    tensors = load_file(out)
    assert [record["id"] for record in records] == ["1", "long", "chat", "12"] == list(tensors)
    assert records == [json.loads(line) for line in (tmp_path / "to" / "embeds.safetensors.jsonl").open()]
    for record, line in zip(records, LINES, strict=True):
        example = generator.example(line.get("prompt") or line["messages"])
        (want,) = generator.embeddings([example])
        found = tensors[record["id"]]
        np.testing.assert_allclose(found, want, atol=1e-5)
        assert (record["positions"], record["spans"]) == (len(found), len(example.spans))
        assert record["latents"] == int((example.tokens == generator.model.memory_token_ids[2]).sum())
        assert record["sha256"] == hashlib.sha256(found.tobytes()).hexdigest()
    assert records[1]["extra"] == {"answer": [7]}
    assert [record["line"] for record in records] == [1, 3, 5, 7]
    assert said[-1][0] == "windows encoded"
    assert said[-1][1] == said[-1][2] > 5
    assert sorted(path.name for path in out.parent.iterdir()) == ["embeds.safetensors", "embeds.safetensors.jsonl"]


def test_a_killed_call_goes_on(exported, prompts, tmp_path, monkeypatch):
    whole = tmp_path / "whole.safetensors"
    encode_prompts(exported, prompts, whole)
    out, append, calls = tmp_path / "out.safetensors", TensorStream.append, []

    def killed(self, array, record):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(record["id"])
        append(self, array, record)

    monkeypatch.setattr(TensorStream, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_prompts(exported, prompts, out)
    assert not out.exists()
    part, journal = tmp_path / "out.safetensors.part", tmp_path / "out.safetensors.part.jsonl"
    with part.open("ab") as file, journal.open("a") as log:  # as a kill in the middle of writing leaves them
        file.write(b"torn")
        log.write('{"id": "torn')
    encoded = []

    def noted(self, array, record):
        encoded.append(record["id"])
        append(self, array, record)

    monkeypatch.setattr(TensorStream, "append", noted)
    records = encode_prompts(exported, prompts, out)
    assert calls == ["1", "long"]
    assert encoded == ["chat", "12"]
    assert out.read_bytes() == whole.read_bytes()
    assert [record["id"] for record in records] == ["1", "long", "chat", "12"]
    assert not part.exists()
    assert not journal.exists()


def test_finished_files_are_kept_and_others_replaced(exported, prompts, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    first = encode_prompts(exported, prompts, out)
    monkeypatch.setattr(embeddings.Generator, "from_folder", None)  # not loaded again
    assert encode_prompts(exported, prompts, out) == first
    monkeypatch.undo()
    write(prompts, LINES[:1])
    assert len(encode_prompts(exported, prompts, out)) == 1
    assert list(load_file(out)) == ["1"]


def test_bfloat16_models_give_bfloat16(exported, prompts, tmp_path, monkeypatch):
    inner = Generator.from_folder
    monkeypatch.setattr(Generator, "from_folder", lambda f, **more: inner(f, compute_dtype="bfloat16", **more))
    encode_prompts(exported, prompts, tmp_path / "out.safetensors")
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "out.safetensors").values()} == {"bfloat16"}


def test_the_torch_file(exported, prompts, tmp_path):
    records = encode_prompts(exported, prompts, tmp_path / "out.safetensors")
    out = tmp_path / "out.pt"
    done = CliRunner().invoke(
        encode, [str(exported), "--prompts", str(prompts), "--out", str(out), "--format", "pt"], catch_exceptions=False
    )
    assert "4 prompts" in done.output
    blob = torch.load(out, weights_only=True)
    tensors = load_file(tmp_path / "out.safetensors")
    assert [entry["id"] for entry in blob["meta"]] == [record["id"] for record in records]
    assert blob["meta"][1]["answer"] == [7]
    for embeds, record in zip(blob["embeds"], records, strict=True):
        assert embeds.dtype == torch.float32
        np.testing.assert_array_equal(embeds.numpy(), tensors[record["id"]])
    assert {path.name for path in tmp_path.glob("out.pt*")} == {"out.pt", "out.pt.jsonl"}


WRONG = [
    ("{", "not JSON"),
    ('"text"', "str instead of an object"),
    ('{"text": "a"}', "neither prompt nor messages"),
    ('{"prompt": "a", "messages": []}', "prompt and messages; give exactly one"),
    ('{"prompt": ""}', "prompt is empty"),
    ('{"messages": []}', "messages is empty"),
    ('{"messages": "text"}', "messages is str"),
    ('{"prompt": 7}', "prompt is int"),
    ('{"prompt": [{"role": "user"}]}', "message 0 lacks"),
    ('{"prompt": "a", "id": true}', "id True"),
    ('{"prompt": "a", "id": "first"}', "id 'first' is that of line 1"),
    ('{"prompt": "a <|memory_start|>b"}', "never closed"),
    (r'{"prompt": "half \ud83d of it"}', r"prompt holds half a character \(\\ud83d at character 5\)"),
    (r'{"messages": [{"role": "user", "content": "\udc00"}]}', "messages holds half a character"),
    (r'{"prompt": "a", "id": "\ud83d"}', "id holds half a character"),
    (r'{"prompt": "a", "tags": [{"x": ["\ud83d"]}]}', "x holds half a character"),
    (r'{"prompt": "a", "\ud83d": 1}', "a key holds half a character"),
    ('{"prompt": "a", "score": NaN}', "NaN is no JSON number"),
    ('{"prompt": "a", "score": 1' + "0" * 5000 + "}", "not JSON"),
    ('{"prompt": "a", "id": 1e3}', "id 1000.0 is no usable name"),
    ('{"prompt": "a", "id": "' + "x" * 1001 + '"}', "has 1001 characters"),
    ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands twice"),
    ('{"prompt": "a", "deep": ' + "[" * 100_000, "too deeply nested"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_bad_prompts_name_their_line(exported, tmp_path, monkeypatch, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine", "id": "first"}\n\n' + line + "\n")
    monkeypatch.setattr(embeddings.Generator, "from_folder", None)  # errors come before the weights
    with pytest.raises(PromptError, match=message) as error:
        encode_prompts(exported, path, tmp_path / "out.safetensors")
    assert f"{path}, line 3: " in str(error.value)


def test_requests_that_cannot_work(exported, prompts, tmp_path):
    with pytest.raises(PromptError, match="holds no prompt"):
        encode_prompts(exported, write(tmp_path / "none.jsonl", []), tmp_path / "out")
    with pytest.raises(LclmError, match="would replace the prompts"):
        encode_prompts(exported, prompts, prompts)
    with pytest.raises(LclmError, match="format 'gguf'"):
        encode_prompts(exported, prompts, tmp_path / "out", file_format="gguf")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(PromptError, match="line 1: not UTF-8"):
        list(read_prompts(tmp_path / "latin.jsonl"))
    (tmp_path / "marked.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert [entry.prompt for entry in read_prompts(tmp_path / "marked.jsonl")] == ["a"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PromptError, match="pipe or a device"):
        list(read_prompts(tmp_path / "pipe"))
    long = write(tmp_path / "long.jsonl", [{"prompt": "x" * 41_000}])
    with pytest.raises(PromptError, match="max_positions=40960"):
        encode_prompts(exported, long, tmp_path / "out")

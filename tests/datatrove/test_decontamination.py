"""Documents and chats that repeat a benchmark, by the n-gram filter of datatrove (make test-datatrove installs it)."""

import json
import random

import pytest
from tests.datatrove.test_engine import TOWER

from lclm_jax.config import parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store.shards import PreparedError
from lclm_jax.errors import LclmError
from lclm_jax.text.train_tokenizer import train_tokenizer

DRAW = random.Random(0)
WORDS = ["".join(DRAW.choice("abcdefghij") for _ in range(DRAW.randint(3, 8))) for _ in range(500)]
WORDING = "\n\nAnswer the question above in one short sentence and say nothing else at all, please, but the answer: "


def words(count):
    return " ".join(DRAW.choice(WORDS) for _ in range(count))


def sample(task, context, question, answer):
    return {"id": words(1), "task": task, "context": context, "question": question, "answers": [answer], "gold": ""}


PROBLEM, ASKED, LONG = words(30), words(20), words(900)
SAMPLES = [
    sample("gsm8k", PROBLEM, WORDING, "7"),
    sample("longbench_hotpotqa", LONG, f"{ASKED}{WORDING}", words(3)),
    sample("longbench_hotpotqa", LONG, f"{words(20)}{WORDING}", words(14)),
    sample("longbench_hotpotqa", LONG, f"{words(20)}{WORDING}", words(2)),
    sample("longbench_hotpotqa", LONG, f"{words(20)}{WORDING}", words(2)),
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    plain = [words(80) for _ in range(6)]
    texts = [
        *plain,
        f"{words(30)} {PROBLEM.upper()}, {words(30)}",
        f"{words(10)}\n{' '.join(PROBLEM.split()[8:20])}. {words(10)}",
        f"{words(10)}\n{' '.join(PROBLEM.split()[8:19])}. {words(10)}",
        f"{words(9)} {SAMPLES[2]['answers'][0]} {words(9)}",
        f"{words(9)}{WORDING}{words(9)}",
        LONG,
    ]
    (root / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked = [f"<|memory_start|>{words(9)} {ASKED[:60]}<|memory_end|>{ASKED[60:]}", words(30)]
    chats = [[{"role": "user", "content": one}, {"role": "assistant", "content": words(5)}] for one in asked]
    (root / "c.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    lines = [{"tasks": "digest"}, *SAMPLES]
    (root / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train_tokenizer(texts, 300, root / "tokenizer")
    return root


def make_config(raw, out, samples):
    return parse_config(
        {
            "name": "t",
            "corpus": {
                "collections": {
                    "web": {"format": "jsonl", "paths": [str(raw / "a.jsonl")]},
                    "sft": {"format": "jsonl", "paths": [str(raw / "c.jsonl")], "records": "chat"},
                },
                "validation_share": 0,
                "held_out_share": 0,
                "decontaminate": samples,
            },
            "tokenizer": {"decoder": str(raw / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {"prepared": str(out), "sources": {"web": {"collection": "web", "objective": "cpt"}}},
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"web": 1}}},
        }
    )


def trains(manifest):
    return {name: splits["train"] for name, splits in manifest["collections"].items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_repeats_a_sample_is_left_out_and_counted(raw, tmp_path, workers):
    made = trains(prepare_corpus(make_config(raw, tmp_path, str(raw / "samples.jsonl")), workers=workers))
    assert made["web"]["counts"] == {"contaminated:gsm8k": 2, "contaminated:longbench_hotpotqa": 1}
    assert made["web"]["records"] == 9, "11 words, the wording of the tasks and long contexts are no contamination"
    assert made["sft"]["counts"] == {"contaminated:longbench_hotpotqa": 1}
    assert made["sft"]["records"] == 1


def test_the_samples_are_part_of_the_settings(raw, tmp_path):
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps(SAMPLES[0]) + "\n")
    config = make_config(raw, tmp_path / "out", str(samples))
    assert trains(prepare_corpus(config))["web"]["records"] == 9, "of one sample alone the wording is unknown"
    samples.write_text(json.dumps(SAMPLES[2]) + "\n")
    with pytest.raises(PreparedError, match="other settings"):
        prepare_corpus(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no samples of 12 words"),
        ('{"tasks": "x"}\n', "has no samples of 12 words"),
        ("{broken\n", "line 1: no sample of a benchmark"),
        ('{"task": "a", "question": "b", "answers": ["c"]}\n', "has no samples of 12 words"),
        ('{"task": "a"}\n', "it needs task, question and answers"),
        ("[]\n", "line 1: no sample"),
    ],
)
def test_files_that_are_no_samples_are_refused(raw, tmp_path, content, message):
    (tmp_path / "samples.jsonl").write_text(content)
    with pytest.raises(LclmError, match=message):
        prepare_corpus(make_config(raw, tmp_path / "out", str(tmp_path / "samples.jsonl")))
    assert not (tmp_path / "out").exists(), "refused before any work"

"""What the objectives of a source produce from prepared documents and chats."""

import json

import numpy as np
import pytest

from lclm_jax.config import ModelConfig, SpanConfig, parse_config
from lclm_jax.data.packing.sources import ExampleRef, make_sources
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.records import chat_columns
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.text.boundaries import boundary_kinds
from lclm_jax.text.example import chat_outline
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
SPANS = {"min_tokens": 6, "max_tokens": 40, "raw_min_tokens": 6, "raw_max_tokens": 40}
TEXT = "".join(
    f"The sentence {i} speaks of {chr(97 + i % 26)}. Then it ends!\n" + "\n" * (i % 3 == 0) for i in range(60)
)
CODE = "".join(f"def f{i}(x):\n    y = x + {i}\n\n    return y\n\n\n" for i in range(30))
SOURCES = {
    "cpt": {"collection": "text", "objective": "cpt", "spans": SPANS},
    "whole": {"collection": "text", "objective": "reconstruction", "spans": SPANS},
    "partial": {
        "collection": "text", "objective": "reconstruction", "spans": SPANS, "partial_share": 1.0, "quote_tokens": 4,
    },
    "qa": {"collection": "qa", "objective": "qa"},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("objectives")
    (root / "text").mkdir()
    (root / "text" / "a.txt").write_text(TEXT)
    (root / "text" / "b.py").write_text(CODE)
    rows = [{"context": [f"p{i} {k}" for k in range(5)], "question": "which?", "answer": f"it {i}"} for i in range(4)]
    (root / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train_tokenizer([TEXT, CODE], 320, root / "tokenizer")
    collections = {
        "text": {"format": "text", "paths": [str(root / "text")]},
        "qa": {"format": "jsonl", "paths": [str(root / "qa.jsonl")], "records": "chat"},
    }
    config = parse_config(
        {
            "name": "t",
            "corpus": {"collections": collections, "validation_share": 0, "held_out_share": 0},
            "tokenizer": {"decoder": str(root / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 16},
            "data": {
                "prepared": str(root / "out"),
                "sources": SOURCES,
                "pack": {"row_length": 256, "encoder_rows": 4, "encoder_row_length": 64},
            },
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": dict.fromkeys(SOURCES, 1)}},
        }
    )
    prepare_corpus(config)
    return config


def source_of(config, name, **changes):
    source = config.data.sources[name].model_copy(update=changes)
    config = config.model_copy(update={"data": config.data.model_copy(update={"sources": {name: source}})})
    stage = config.stages["s"].model_copy(update={"mixture": {name: 1.0}})
    tokenizer = Tokenizer(config.tokenizer.decoder)
    pair = Tokenizers(tokenizer, tokenizer)
    return make_sources(config.model_copy(update={"stages": {"s": stage}}), "s", pair)[0]


def examples_of(source, epoch=0):
    plan = source.plan(epoch, np.arange(len(source)))
    for i in range(plan.record.size):
        ref = ExampleRef(0, int(plan.record[i]), int(plan.variant[i]), plan.bounds.list(i))
        example = source.example(ref, source.split.read(ref.record))
        assert len(example.tokens) == plan.tokens[i]
        assert sorted(map(len, example.spans)) == sorted(plan.spans.list(i).tolist())
        yield ref, example


def test_partial_reconstruction_asks_for_what_follows_a_quotation(run):
    source = source_of(run, "partial")
    tokenizer, partial = Tokenizer(run.tokenizer.decoder), 0
    for ref, example in examples_of(source):
        span, whole = tokenizer.decode(example.spans[0]), tokenizer.decode(example.tokens)
        answer = tokenizer.decode(example.tokens[example.loss > 0]).removesuffix("<|im_end|>\n")
        assert span.endswith(answer)
        if len(ref.bounds) == 4:
            partial += 1
            quote = whole.split("<|im_end|>")[0].rpartition(span[: -len(answer)][-3:])
            assert 0 < len(answer) < len(span)
            assert quote[1], "the quotation stands right before the end of the question"
        else:
            assert answer == span  # too short to quote a part of it
    assert partial > 10


def test_whole_reconstruction_is_unchanged_by_the_keys_of_the_partial(run):
    for _, example in examples_of(source_of(run, "whole")):
        tokenizer = Tokenizer(run.tokenizer.decoder)
        answer = tokenizer.decode(example.tokens[example.loss > 0])
        assert answer == tokenizer.decode(example.spans[0]) + "<|im_end|>\n"


def test_passages_come_in_another_order_each_epoch(run):
    source, tokenizer = source_of(run, "qa"), Tokenizer(run.tokenizer.decoder)
    orders = []
    for epoch in (0, 1, 0):
        order = []
        for ref, example in examples_of(source, epoch):
            texts = [tokenizer.decode(span) for span in example.spans]
            assert sorted(texts) == [f"p{ref.record} {k}" for k in range(5)]
            assert tokenizer.decode(example.tokens[example.loss > 0]) == f"it {ref.record}<|im_end|>\n"
            order.append(texts)
        orders.append(order)
    assert orders[0] == orders[2] != orders[1]


def test_passages_stay_in_their_message(run):
    source, tokenizer = source_of(run, "qa"), Tokenizer(run.tokenizer.decoder)

    def asked(*passages):
        tagged = "".join(f"<|memory_start|>{passage}<|memory_end|>\n" for passage in passages)
        return [{"role": "user", "content": tagged + "which?"}, {"role": "assistant", "content": passages[0]}]

    messages = [*asked("a1", "a2", "a3"), *asked("b1", "b2", "b3")]
    messages[1]["weight"] = 0  # a reply without loss parts them, too
    columns = chat_columns("x", messages, chat_outline(messages, tokenizer, tokenizer, replies="all"))
    orders = set()
    for variant in range(1, 30):
        spans = source.example(ExampleRef(0, 0, variant, np.zeros(0, np.int32)), columns).spans
        texts = [tokenizer.decode(span) for span in spans]
        assert (sorted(texts[:3]), sorted(texts[3:])) == (["a1", "a2", "a3"], ["b1", "b2", "b3"])
        orders.add(tuple(texts))
    assert len(orders) > 10


@pytest.mark.parametrize("boundary", ["sentence", "paragraph", "code_block"])
def test_segments_end_at_the_boundary_where_there_is_one(run, boundary):
    flag = {"sentence": 1, "paragraph": 2, "code_block": 4}[boundary]
    spans = run.data.sources["cpt"].spans.model_copy(update={"boundary": boundary})
    source, shares = source_of(run, "cpt", spans=spans), {}
    for ref, _ in examples_of(source):
        record = source.split.read(ref.record)
        kinds = record["cut_kinds"][ref.bounds[1:-1]] & flag
        shares.setdefault(column_text(record["id"]), []).extend((kinds > 0).tolist())
    share = np.mean(shares["b.py" if boundary == "code_block" else "a.txt"])
    plain = source_of(run, "cpt")
    assert share > (0.9 if boundary != "paragraph" else 0.25)
    assert {tuple(ref.bounds) for ref, _ in examples_of(plain)} != {tuple(ref.bounds) for ref, _ in examples_of(source)}


def test_boundaries_of_a_text():
    text = "One. Two?\nThree\n\nfour\n  five\nsix)\n)\n"
    kinds = boundary_kinds(text, np.arange(len(text) + 1))
    starts = {flag: [text[i:][:5] for i in np.flatnonzero(kinds & flag)] for flag in (1, 2, 4)}
    assert starts == {1: [" Two?", "Three", "four\n"], 2: ["four\n"], 4: ["four\n", "six)\n"]}


def test_lengths_of_spans_and_their_share(run):
    plan = source_of(run, "cpt").plan(0, np.arange(2))
    assert plan.spans.values.size > 20
    assert 6 <= plan.spans.values.min() <= plan.spans.values.max() <= 40
    assert 0.2 < (plan.spans.sums() / plan.raw_tokens).mean() < 0.8
    raw = source_of(run, "cpt", spans=run.data.sources["cpt"].spans.model_copy(update={"raw_share": 1.0}))
    assert not raw.plan(0, np.arange(2)).spans.values.size


def test_prepared_kinds_are_those_of_the_text(run):
    split = PreparedSplit(run.data.prepared, "text", "train")
    for record in split.read_many(range(len(split))):
        assert len(record["cut_kinds"]) == len(record["cuts"])
        assert record["cut_kinds"].any()


def test_documents_begin_with_the_token_that_the_tokenizer_puts_before_a_text(run, monkeypatch):
    source = source_of(run, "cpt")
    plain = [example for _, example in examples_of(source)]
    assert "bos_id" not in source.inputs()
    monkeypatch.setattr(Tokenizer, "bos_id", 319)
    source = source_of(run, "cpt")
    assert source.inputs()["bos_id"] == 319
    opened = [example for _, example in examples_of(source)]
    assert all(example.tokens[0] == 319 and example.loss[0] == 0 and len(example.tokens) <= 256 for example in opened)
    assert any(example.loss[1] == 1 for example in opened)
    np.testing.assert_array_equal(opened[0].tokens[1:50], plain[0].tokens[:49])


@pytest.mark.parametrize("name", SOURCES)
def test_every_span_draws_a_ratio_of_its_own(run, name):
    model = ModelConfig(**run.model.model_dump() | {"span_ratios": (4, 8, 16)})
    source = source_of(run.model_copy(update={"model": model}), name)
    drawn = [ratio for _, example in examples_of(source) for ratio in example.ratios.tolist()]
    assert {*drawn} == {4, 8, 16}
    assert drawn == [ratio for _, example in examples_of(source) for ratio in example.ratios.tolist()]
    other = [ratio for _, example in examples_of(source, epoch=1) for ratio in example.ratios.tolist()]
    assert other != drawn
    given = source_of(run.model_copy(update={"model": model}), name, spans=SpanConfig(**SPANS, ratio=8))
    assert {ratio for _, example in examples_of(given) for ratio in example.ratios.tolist()} == {8}

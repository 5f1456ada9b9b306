import json

import pytest

from lclm_jax.config import parse_config
from lclm_jax.data.documents import Document
from lclm_jax.data.prepare.rows.long_documents import pieces
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)


def parted(text, longest):
    return list(pieces(Document("name", text, "train", "en"), longest))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", ["short"]),
        ("one two\n\nthree\nfour", ["one two\n\n", "three\nfour"]),
        ("a line\nof words in a row", ["a line\n", "of words", " in a row"]),
        ("a few words that have no line", ["a few", " words", " that", " have no", " line"]),
        ("x" * 30 + " end", ["x" * 30 + " end"]),
    ],
)
def test_a_text_is_parted_at_the_best_place(text, expected):
    found = parted(text, 10)
    assert [one.text for one in found] == expected
    assert [one.id for one in found] == ["name", *(f"name#{i}" for i in range(2, len(found) + 1))]
    assert {(one.split, one.language) for one in found} == {("train", "en")}


def test_a_document_as_long_as_a_record_stays_whole():
    document = Document("name", "one two three\n" * 100, "train")
    assert list(pieces(document, len(document.text))) == [document]


def test_a_corpus_stores_a_long_document_in_records_of_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr("lclm_jax.data.prepare.prepare_part.pieces", lambda one: pieces(one, 1000))
    sentences = [f"Sentence number {i} is about the letter {chr(97 + i % 26)}.\n" for i in range(200)]
    train_tokenizer(sentences, 300, tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "".join(sentences)}) + '\n{"text": "A short one."}\n')
    config = parse_config(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "corpus": {"collections": {"web": {"format": "jsonl", "paths": [str(tmp_path / "rows.jsonl")]}}},
            "tokenizer": {"decoder": str(tmp_path / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 16},
            "data": {
                "prepared": str(tmp_path / "prepared"),
                "sources": {"web": {"collection": "web", "objective": "cpt"}},
            },
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "batch_rows": 1, "mixture": {"web": 1}}},
        }
    )
    manifest = prepare_corpus(config)
    entry = manifest["collections"]["web"]
    assert entry["train"]["counts"] == {"in_pieces": 1}
    split = PreparedSplit(tmp_path / "prepared", "web", "train")
    texts = [column_text(split.read(i)["text"]) for i in range(len(split))]
    assert "".join(texts[:-1]) == "".join(sentences) and texts[-1] == "A short one."
    assert max(map(len, texts)) <= 1000

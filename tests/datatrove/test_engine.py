"""Filters, de-duplication and executors of datatrove (make test-datatrove installs it)."""

import json
import random

import pytest

from lclm_jax.config import parse_config
from lclm_jax.data.prepare.executors import run_on
from lclm_jax.data.prepare.filters import DocumentFilters
from lclm_jax.data.prepare.run import plan_preparation, prepare_corpus
from lclm_jax.errors import LclmError
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("raw"), random.Random(0)
    words = ["".join(draw.choice("abcdefghij") for _ in range(draw.randint(3, 8))) for _ in range(500)]
    texts = [" ".join(draw.choice(words) for _ in range(80)) for _ in range(30)]
    texts += [*texts[:5], *(f"{text} extra words" for text in texts[5:9]), "the short"]
    (root / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train_tokenizer(texts, 300, root / "tokenizer")
    return root


def make_config(raw, dedup, out):
    web = {
        "format": "jsonl",
        "paths": [str(raw / "a.jsonl")],
        "dedup": dedup,
        "filters": {"length": {"min_doc_words": 5}},
    }
    return parse_config(
        {
            "name": "t",
            "corpus": {"collections": {"web": web}, "validation_share": 0, "held_out_share": 0},
            "tokenizer": {"decoder": str(raw / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {
                "prepared": str(out),
                "shard_bytes": 4000,
                "sources": {"web": {"collection": "web", "objective": "cpt"}},
            },
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"web": 1}}},
        }
    )


@pytest.mark.parametrize(("dedup", "kept"), [(None, 39), ("exact", 34), ("near", 30)])
def test_duplicates_are_counted_and_every_way_gives_the_same_bytes(raw, tmp_path, dedup, kept):
    train = prepare_corpus(make_config(raw, dedup, tmp_path / "own"), workers=2)["collections"]["web"]["train"]
    assert train["records"] == kept
    assert train["counts"].get("duplicate", 0) == 39 - kept
    assert train["counts"]["filtered_gopher_short_doc"] == 1
    run_on("local", plan_preparation(make_config(raw, dedup, tmp_path / "engine")), 3, {"workers": 2})
    own, engine = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "web").iterdir()} for name in ("own", "engine")
    )
    assert own == engine


def test_wrong_filters_and_options_say_what_to_do(raw, tmp_path, monkeypatch):
    with pytest.raises(LclmError, match="did you mean 'gopher_quality'"):
        DocumentFilters({"gopher_qualty": {}})
    with pytest.raises(LclmError, match="filter length with"):
        DocumentFilters({"length": {"words": 5}})
    with pytest.raises(LclmError, match="give its arguments by -o"):
        run_on("slurm", plan_preparation(make_config(raw, None, tmp_path)), 2, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LclmError, match=r"cannot start its jobs: .*sbatch"):
        run_on("slurm", plan_preparation(make_config(raw, None, tmp_path)), 2, {"time": "1:00", "partition": "a"})

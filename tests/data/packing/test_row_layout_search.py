import pytest

from lclm_jax.bench.simulated import corpus
from lclm_jax.bench.simulated.corpus import simulated_sources
from lclm_jax.config import parse_config
from lclm_jax.data.packing.row_layout_search import search_row_layouts
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=512)
SPANS = {"law": "uniform", "min_tokens": 16, "max_tokens": 64, "raw_min_tokens": 16, "raw_max_tokens": 64}


@pytest.fixture(autouse=True)
def documents_of_a_chapter(monkeypatch):
    """Spans are of a few tokens here: of the longest documents each would have tens of thousands, placed in turn."""
    monkeypatch.setattr(corpus, "_LONGEST", 2**13)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["def f(x): return x + 1\n" * 20], 300, folder)
    one = Tokenizer.from_folder(folder)
    return Tokenizers(one, one)


def long_tailed(row_length, encoder_rows, ratio=4, spans=SPANS):
    sources = {
        "cpt": {"collection": "documents", "objective": "cpt", "max_tokens": 300, "spans": spans},
        "repeat": {"collection": "documents", "objective": "reconstruction", "spans": spans},
    }
    pack = {"row_length": row_length, "encoder_rows": encoder_rows, "encoder_row_length": 128, "block_examples": 1500}
    stage = {"lr": {"adapter": 1e-3}, "steps": 6, "mixture": {"cpt": 0.5, "repeat": 0.5}}
    return parse_config(
        {
            "name": "test",
            "tokenizer": {"vocab_size": 512},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": ratio, "window": 32},
            "data": {"sources": sources, "pack": pack},
            "stages": {"only": stage},
        }
    )


def fills(config, tokenizers):
    return list(search_row_layouts(config, "only", lambda changed: simulated_sources(changed, "only", tokenizers, 1e8)))


def test_a_layout_that_fills_both_budgets_is_found(tokenizers):
    tried = fills(long_tailed(512, 1), tokenizers)
    assert (tried[0].pack.row_length, tried[0].pack.encoder_rows) == (512, 1)
    assert not tried[0].sufficient and tried[0].decoder < 0.9
    assert tried[-1].sufficient and tried[-1].decoder >= 0.98 and tried[-1].encoder >= 0.90
    assert all(one.pack.row_length % 128 == 0 for one in tried)
    # What was proposed is sufficient when it is configured, and nothing else is tried then.
    best = tried[-1].pack
    assert [one.sufficient for one in fills(long_tailed(best.row_length, best.encoder_rows), tokenizers)] == [True]


def test_the_best_is_found_where_nothing_fills_both(tokenizers):
    # Spans of 12 tokens take 16 encoder positions at N = 8, so 0.75 is all that can be had.
    spans = {"law": "fixed", "min_tokens": 12, "max_tokens": 12, "raw_min_tokens": 12, "raw_max_tokens": 12}
    tried = fills(long_tailed(256, 8, ratio=8, spans=spans), tokenizers)
    assert not any(one.sufficient for one in tried)
    assert 1 < len(tried) <= 9
    best = max(tried, key=lambda one: one.score)
    assert best.score >= tried[0].score and best.encoder > 0.65

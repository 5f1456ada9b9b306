"""A small prepared run for the evaluation tests."""

import jax
import pytest

from lclm_jax.config import RunPaths, parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.model.lclm import init_params
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=320, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
WORDS = "the quiet harbour kept {0} boats and {1} lamps near the old wall where Ines counted {2} ropes. "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, tokenizers, params) of a prepared run that was never trained."""
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    texts = ["".join(WORDS.format(i, k * 7, i * k) for k in range(12)) for i in range(16)]
    for i, text in enumerate(texts):
        (root / "corpus" / f"file{i:02d}.txt").write_text(text)
    tokenizer = Tokenizer(train_tokenizer(texts, 300, root / "tokenizer"))
    config = parse_config(
        {
            "name": "t",
            "run_dir": str(root / "run"),
            "corpus": {"kind": "folder", "path": str(root / "corpus"), "held_out_share": 0.6},
            "tokenizer": {"decoder": str(root / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 16, "compute_dtype": "float32"},
            "data": {
                "sources": {"cpt": {"collection": "documents", "objective": "cpt"}},
                "pack": {"row_length": 128, "encoder_rows": 2, "encoder_row_length": 64},
            },
            "stages": {"a": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"cpt": 1}, "batch_rows": 8}},
            "eval": {
                "examples": 10,
                "context_tokens": 20,
                "continuation_tokens": 12,
                "repetition_tokens": 16,
                "batch_rows": 8,
                "free_running_examples": 2,
            },
        }
    )
    prepare_corpus(config, RunPaths(config).prepared)
    model = config.model.model_copy(update={"memory_token_ids": tuple(tokenizer.memory_ids)})
    return config, Tokenizers(tokenizer, tokenizer), model, init_params(model, jax.random.key(0))

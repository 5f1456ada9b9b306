"""A prepared run that several files test."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from lclm_jax.config import parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

FILES = ("bisect.py", "heapq.py", "textwrap.py", "shlex.py", "stat.py", "keyword.py", "fnmatch.py", "colorsys.py")
BACKBONE = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=512)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A prepared run over a few files of the standard library: (config values, tokenizers)."""
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for name in FILES:
        shutil.copy(library / name, root / "corpus" / name)
    texts = [(root / "corpus" / name).read_text() for name in FILES]
    train_tokenizer(texts, 512, root / "tokenizer")
    spans = {"min_tokens": 8, "max_tokens": 32, "raw_min_tokens": 8, "raw_max_tokens": 32}
    values = {
        "name": "test",
        "run_dir": str(root),
        "corpus": {"kind": "folder", "path": str(root / "corpus"), "validation_share": 0, "held_out_share": 0},
        "tokenizer": {"decoder": str(root / "tokenizer")},
        "model": {"encoder": BACKBONE, "decoder": BACKBONE, "ratio": 4, "window": 32},
        "data": {
            "sources": {
                "cpt": {"collection": "documents", "objective": "cpt", "max_tokens": 120, "spans": spans},
                "repeat": {"collection": "documents", "objective": "reconstruction", "spans": spans},
                "chat": {"collection": "chat", "objective": "chat"},
            },
            "pack": {"row_length": 256, "encoder_rows": 4, "encoder_row_length": 128},
        },
        "stages": {
            "mixed": {
                "lr": {"adapter": 1e-3},
                "steps": 6,
                "batch_rows": 8,
                "mixture": {"cpt": 0.4, "repeat": 0.5, "chat": 0.1},
            }
        },
    }
    config = parse_config(values)
    prepare_corpus(config, root / "data")
    tokenizer = Tokenizer.from_folder(root / "tokenizer")
    return values, Tokenizers(tokenizer, tokenizer)


@pytest.fixture(scope="session")
def edited():
    """Make a configuration with changed keys of its stage, ``data`` or ``model``."""

    def make(values, **changes):
        stage = values["stages"]["mixed"] | changes.pop("stage", {})
        data = values["data"] | changes.pop("data", {})
        model = values["model"] | changes.pop("model", {})
        return parse_config(values | {"stages": {"mixed": stage}, "data": data, "model": model} | changes)

    return make


@pytest.fixture(scope="session")
def small_blocks(edited):
    """Make a configuration, as ``edited`` does, whose index has many blocks."""

    def make(values, **changes):
        pack = values["data"]["pack"] | {"block_examples": 40}
        return edited(values, data={"pack": pack}, **changes)

    return make

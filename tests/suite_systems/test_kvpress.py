"""The kvpress worker beside kvpress' own pipeline, in kvpress' own environment (``make test-suite-systems``)."""

import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.conftest import tiny_backbone
from tests.exporting import export_model

from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import abstract_params
from lclm_jax.suite.systems.lclm_worker import load_system
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("KVPRESS_PYTHON", str(ROOT / ".venv-kvpress/bin/python"))
# Presses that mask (kvzip, adakv) find no keys to mask with in a model as tiny as this one.
PRESSES = ["snapkv", "expected_attention", "streaming_llm", "tova", "knorm", "compactor", "keydiff", "lagkv"]
QUANTIZED = [[None, 4], [None, 2], ["snapkv", 4]]
"""(press, bits of the cache)."""
RATIO = 4
REQUESTS = [
    {
        "id": str(number),
        "instruction": "Read: ",
        "context": "".join(str((7 * number + k * k) % 10) for k in range(240)),
        "question": " Which number?",
        "prefix": " It is",
        "gold": " 12",
        "max_new_tokens": 8,
        "chat": True,
        "generate": True,
    }
    for number in range(3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LCLM; kvpress reads its decoder."""
    home = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(train_tokenizer(["a few words to train a tokenizer on"], 290, home / "tokenizer"))
    tower = tiny_backbone(vocab_size=300, num_layers=3)
    model = ModelConfig(encoder=tower, decoder=tower, ratio=RATIO, window=64, compute_dtype="float32", remat="none")
    model = model.model_copy(update={"memory_token_ids": tuple(tokenizer.memory_ids)})
    rng = np.random.default_rng(0)
    shapes = abstract_params(model)
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), shapes)
    tokens = tokenizer.folder
    export_model(params, model, home / "out", decoder_tokenizer=tokens, encoder_tokenizer=tokens, dtype="float32")
    return home / "out"


@pytest.fixture(scope="module")
def found(folder):
    settings = {"model": str(folder / "decoder"), "context": "raw", "ratio": RATIO, "dtype": "float32"}
    settings["runs"] = [[press, None] for press in (None, "nothing", *PRESSES)] + QUANTIZED
    done = subprocess.run(
        [PYTHON, str(ROOT / "tests/suite_systems/kvpress_pipeline.py")],
        input=json.dumps([settings, REQUESTS]),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def rows_of(found, press, bits=None):
    return [row for row in found if (row["press"], row["bits"]) == (press, bits)]


@pytest.mark.parametrize(("press", "bits"), [[press, None] for press in (None, "nothing", *PRESSES)] + QUANTIZED)
def test_answers_equal_those_of_the_pipeline(found, press, bits):
    rows = rows_of(found, press, bits)
    assert len(rows) == len(REQUESTS)
    assert [row["answer"] for row in rows] == [row["theirs"] for row in rows]


def test_a_quantized_cache_is_near_the_whole_one_and_smaller(found):
    whole, four, two = ([row["nll"] for row in rows_of(found, None, bits)] for bits in (None, 4, 2))
    assert four != whole
    assert np.abs(np.subtract(four, whole)).mean() < np.abs(np.subtract(two, whole)).mean()
    for full, small in zip(rows_of(found, None), rows_of(found, None, 4), strict=True):
        assert small["positions"] == full["positions"]
        # Keys and values of 2 heads of 8 in 3 layers: 96 values of 4 bytes, or of half a byte and, for every 16 of
        # them, a scale and a shift of 4 bytes. What is read after the context stays whole.
        assert full["cache_bytes"] - small["cache_bytes"] == full["before"] * (96 * 4 - (96 // 2 + 96 // 16 * 8))


def test_a_press_that_does_nothing_reproduces_the_uncompressed_row(found):
    def rows(press):
        names = ("answer", "nll", "positions", "cache_bytes", "finish")
        return [{name: row[name] for name in names} for row in rows_of(found, press)]

    assert rows("nothing") == rows(None)


@pytest.mark.parametrize("press", PRESSES)
def test_budget_is_that_of_the_latents(found, folder, press):
    """240 digits: 60 latents and 2 tags of an LCLM, as many positions of a press; the rest is read in full."""
    latents = load_system({"model": str(folder), "context": "memory", "dtype": "float32"})
    for request, row in zip(REQUESTS, rows_of(found, press), strict=True):
        assert row["raw_tokens"] - row["positions"] == 240 - 62
        assert row["positions"] == latents.count(request)["positions"]


def test_uncompressed_row_is_that_of_jax(found, folder):
    raw = load_system({"model": str(folder), "context": "raw", "dtype": "float32"})
    for request, row in zip(REQUESTS, rows_of(found, None), strict=True):
        ours = raw.answer(request)
        assert ours["answer"] == row["answer"]
        assert ours["positions"] == row["positions"]
        assert ours["nll"] == pytest.approx(row["nll"], abs=1e-3)

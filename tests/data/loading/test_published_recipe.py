"""configs/recipes/stage3-2026-09.yaml on the published layout in miniature: prepared once, rows for 4x, 8x and 16x."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.data.helpers import unpack_row
from tests.data.prepare.published_mixture import native_agent, reasoning, thoughts, write_mixture
from tests.data.prepare.test_chat_rows import TEMPLATE
from tests.data.prepare.test_prepare_part import TOWER
from tests.devices import only_one_device

from lclm_jax import train_stages
from lclm_jax.config import load_config
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

RECIPE = Path(__file__).parents[3] / "configs/recipes/stage3-2026-09.yaml"
ROWS = 24
REASONING, NATIVE, EXPANDED, OTHER = range(4)
"""The recipe's sources in the order of its mixture."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    write_mixture(root, rows=ROWS)
    texts = [thoughts(i) for i in range(40)] + [reasoning(i)["target"] for i in range(6)]
    folder = train_tokenizer([*texts, *(native_agent(i)["messages"] for i in range(6))], 512, root / "tokenizer")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return root


def tiny(root, *overrides):
    """The recipe with paths below ``root`` and a tiny model."""
    folders = {"reasoning": "base", "other": "base", "native_agents": "native_agents"}
    folders["expanded_agents"] = "expanded_agents"
    towers = ", ".join(f"{name}: {value}" for name, value in (TOWER | {"preset": "null"}).items())
    return load_config(
        RECIPE,
        [
            *(f"corpus.collections.{name}.paths=[{root}/raw/{folder}]" for name, folder in folders.items()),
            "corpus.validation_share=0",
            "corpus.held_out_share=0",
            f"tokenizer.decoder={root}/tokenizer",
            "tokenizer.encoder=null",
            "init.run=null",
            f"model.encoder={{{towers}}}",
            f"model.decoder={{{towers}}}",
            "model.window=64",
            "data.workers=0",
            f"data.prepared={root}/prepared",
            "data.pack.row_length=1024",
            "data.pack.encoder_rows=32",
            "data.pack.encoder_row_length=64",
            "stages.stage3.batch_rows=4",
            "stages.stage3.steps=4",
            "stages.stage3.mixture.expanded_agents=700000",  # often enough for a few rows
            f"run_dir={root}/run",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def manifest(root):
    return prepare_corpus(tiny(root))


def rows_of(config):
    """(N's placeholder rows, number of the source of every example) of the first rows, as they are trained on."""
    tokenizer = Tokenizer(Path(config.tokenizer.decoder))
    found = []
    with make_loader(config, "stage3", Tokenizers(tokenizer, tokenizer)) as loader:
        for row in range(10):
            refs = loader.maker.find(row)[0].row(row)
            _, batch, _ = loader.row(row)
            arrays = {name: value[0] for name, value in zip(batch._fields, batch, strict=True) if value is not None}
            found.append(([ref.source for ref in refs], unpack_row(arrays, config.model.ratio)))
    return found, tokenizer


def test_the_mixture_is_prepared_whole(manifest):
    records = {name: splits["train"]["records"] for name, splits in manifest["collections"].items()}
    assert records == {"reasoning": 24, "native_agents": 12, "expanded_agents": 12, "other": 24}
    counts = manifest["collections"]["reasoning"]["train"]["counts"]
    kinds = ("tags", "separator", "last_tokens", "raw", "whole")
    assert sum(counts.get(f"reasoning_{kind}", 0) for kind in kinds) == ROWS
    assert counts["reasoning_tags"] > 0 < counts["reasoning_separator"]


@pytest.mark.parametrize("ratio", [4, 8, 16])
def test_rows_are_of_one_category_and_of_its_kind(root, manifest, ratio):
    rows, tokenizer = rows_of(tiny(root, f"model.ratio={ratio}"))
    placeholder, seen = tokenizer.memory_ids.placeholder, set()
    for sources, examples in rows:
        kinds = {"agent" if one in (NATIVE, EXPANDED) else one for one in sources}
        assert len(kinds) == 1
        seen |= set(sources)
        for source, example in zip(sources, examples, strict=True):
            assert example.loss.any()
            assert (example.tokens == placeholder).sum() == sum(-(-len(span) // ratio) for span in example.spans)
            assert not example.loss[example.tokens == placeholder].any()
            counts = {NATIVE: (0, 0), EXPANDED: (8, 8), REASONING: (0, 1), OTHER: (1, 1)}
            low, high = counts[source]
            assert low <= len(example.spans) <= high
    assert seen == {REASONING, NATIVE, EXPANDED, OTHER}


def test_rows_are_mixed_where_the_recipe_says_so(root, manifest):
    rows, _ = rows_of(tiny(root, "data.pack.by_category=false"))
    assert any(len(set(sources)) > 2 for sources, _ in rows)


def test_all_ratios_share_the_shards(root, manifest):
    assert [prepare_corpus(tiny(root, f"model.ratio={ratio}")) for ratio in (4, 8)] == [manifest] * 2


@pytest.mark.slow
def test_a_few_steps_of_training(root, manifest):
    with only_one_device():
        train_stages(tiny(root, "stages.stage3.steps=2", "train.log_every=1"))
    lines = (root / "run/stages/stage3/metrics.jsonl").read_text().splitlines()
    losses = [record["loss_nats"] for record in map(json.loads, lines) if "loss_nats" in record]
    assert len(losses) == 2
    assert np.isfinite(losses).all()

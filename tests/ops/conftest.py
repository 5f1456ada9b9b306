"""A run's files written by hand."""

import json

import pytest
import yaml

from lclm_jax.config import load_config

STAGE = {"lr": {"adapter": 1e-3}, "steps": 10, "mixture": {"cpt": 1}, "batch_rows": 2}
CONFIG = {
    "name": "watched",
    "tokenizer": {"vocab_size": 64},
    "data": {
        "sources": {"cpt": {"collection": "documents", "objective": "cpt"}},
        "pack": {"row_length": 128, "encoder_rows": 1, "encoder_row_length": 128},
    },
    "stages": {"one": STAGE, "two": STAGE | {"batch_rows": 4}},
}


@pytest.fixture(name="step")
def step_fixture():
    """``step(number, loss=2.0, **more)``: a record of metrics.jsonl."""
    return step


def step(number, loss=2.0, **more):
    values = {"step": number, "loss_nats": loss, "raw_tokens": 100, "wall_seconds": 2.0, "data_wait_seconds": 0.5}
    return values | {"decoder_fill": 0.9, "skipped": 0.0, "nonfinite": 0.0, "unix_seconds": 1000.0 + number} | more


@pytest.fixture
def run(tmp_path, model):
    tree = CONFIG | {"model": model.model_dump(mode="json", exclude={"memory_token_ids"}) | {"window": 128}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))

    def write(records, events, saved=(), stage="one"):
        folder = tmp_path / "stages" / stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + '{"step": 9')
        (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
        for done in saved:
            (folder / "checkpoints" / str(done)).mkdir(parents=True)
        return load_config(tmp_path / "config.yaml").model_copy(update={"run_dir": str(tmp_path)})

    return write

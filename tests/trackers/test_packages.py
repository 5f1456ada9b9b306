"""What arrives in the real packages of ``train.trackers`` (make test-trackers installs them)."""

import json
import sqlite3
import time

import pytest

from lclm_jax.config import parse_config
from lclm_jax.train.logging.trackers import open_trackers

TOWER = dict(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
STAGE = {"lr": {"adapter": 1e-3}, "steps": 5, "mixture": {"cpt": 1}, "batch_rows": 8}


@pytest.fixture
def told(tmp_path):
    """Tell a tracker of two steps and a probe of the second stage; its run's folder."""

    def tell(name):
        config = parse_config(
            {
                "name": "told",
                "run_dir": str(tmp_path / "run"),
                "tokenizer": {"vocab_size": 64},
                "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 8},
                "data": {
                    "sources": {"cpt": {"collection": "documents", "objective": "cpt"}},
                    "pack": {"row_length": 16, "encoder_rows": 1, "encoder_row_length": 16},
                },
                "stages": {"one": STAGE, "two": STAGE},
                "train": {"trackers": [name]},
            }
        )
        (tmp_path / "run").mkdir()
        (tracker,) = open_trackers(config)
        tracker.start("two", 0, 5)
        tracker.step({"step": 0, "loss_nats": 2.5, "loss_nats/cpt": 2.25})
        tracker.step({"step": 1, "loss_nats": None})
        tracker.probe(2, {"context_nats/raw": 1.5})
        tracker.finish()
        tracker.close()
        return tmp_path / "run"

    return tell


def test_tensorboard(told):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told("tensorboard") / "tensorboard"))
    events.Reload()
    found = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "train/loss_nats": [(5, 2.5)],
        "train/loss_nats/cpt": [(5, 2.25)],
        "probe/context_nats/raw": [(6, 1.5)],
    }


def test_wandb_offline(told, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (file,) = told("wandb").glob("wandb/offline-run-*/run-*.wandb")
    wanted = {b"train/loss_nats/cpt", b"2.25", b"probe/context_nats/raw", b"1.5"}
    # Protocol buffers of JSON values, which the package has no reader of. A process of wandb's own writes them, and on
    # a busy machine is not done when the run is finished.
    patience = time.monotonic() + 30
    while (absent := {text for text in wanted if text not in file.read_bytes()}) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not absent


def test_trackio(told, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    told("trackio")
    with sqlite3.connect(tmp_path / "trackio" / "lclm.db") as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    found = [(step, json.loads(values)) for step, values in rows]
    assert (5, {"train/loss_nats": 2.5, "train/loss_nats/cpt": 2.25}) in found
    assert (6, {"probe/context_nats/raw": 1.5}) in found

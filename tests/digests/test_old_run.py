"""A run that version 0.1 began before the packages were sorted: its corpus opens, its checkpoint resumes."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tests.compiler_flags import FAST
from tests.digests.test_digests import lclm

from lclm_jax.config import load_config
from lclm_jax.data.store import PreparedSplit, column_text

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.tar.gz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run as it was left: 5 of 10 steps made. Its files were made as tests/digests makes them, only smaller."""
    home = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(home, filter="data")
    return home


def test_the_corpus_opens(folder):
    texts = {json.loads(line)["text"].strip() for line in (folder / "documents.jsonl").read_text().splitlines()}
    split = PreparedSplit(folder / "runs/run/data", "documents", "train")
    assert len(split)
    assert all(column_text(split.read(record)["text"]).strip() in texts for record in range(len(split)))


def test_the_checkpoint_resumes(folder):
    recorded = [float.fromhex(loss) for loss in json.loads((folder / "recorded.json").read_text())["losses"]]
    lclm(folder, "train", "run.yaml", xla_flags=FAST)
    lines = (folder / "runs/run/stages/only/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [step["step"] for step in steps] == list(range(10))
    np.testing.assert_allclose([step["loss_nats"] for step in steps], recorded, rtol=1e-5)
    events = (folder / "runs/run/stages/only/events.jsonl").read_text().splitlines()
    begun = [event for event in map(json.loads, events) if event["kind"] == "begin"]
    assert begun[-1]["step"] == 5, "resumed, not started over"
    assert load_config(folder / "runs/run/config.yaml").stages["only"].steps == 10

"""Probes in the loop: when they run, what they write, and that training does not notice."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.train.core import one_stage

from lclm_jax.model.lclm import abstract_params
from lclm_jax.ops.goodput import goodput
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.checkpoints.provenance import checkpoints_folder
from lclm_jax.train.logging.events import read_events
from lclm_jax.train.logging.progress import SilentReporter
from lclm_jax.train.logging.records import MEASURED, read_metrics


def outcome(config):
    folder = Path(config.run_dir) / "stages" / "only"
    lines = [
        {k: v for k, v in one.items() if not k.endswith(MEASURED)} for one in read_metrics(folder / "metrics.jsonl")
    ]
    with Checkpoints(checkpoints_folder(config, "only")) as checkpoints:
        params = checkpoints.restore_params(config.stages["only"].steps, abstract_params(config.model))
    return lines, jax.tree.leaves(params)


@pytest.mark.slow
def test_probes_change_nothing_but_the_time(make_config, tmp_path):
    config = make_config(steps=5, batch_rows=2, train={"probe": {"every_steps": 2}})
    plain, probed = (config.model_copy(update={"run_dir": str(tmp_path / name)}) for name in ("plain", "probed"))

    def probe(params):
        return {"context_nats/raw": float(sum(np.abs(leaf).sum(dtype=np.float64) for leaf in jax.tree.leaves(params)))}

    one_stage.run_only(plain)
    one_stage.run_only(probed, probe=probe)
    (lines, params), (other_lines, other_params) = outcome(plain), outcome(probed)
    assert lines == other_lines
    assert all(np.array_equal(a, b) for a, b in zip(params, other_params, strict=True))
    folder = tmp_path / "probed" / "stages" / "only"
    found = list(read_metrics(folder / "probes.jsonl"))
    assert [one["step"] for one in found] == [2, 4, 5]
    values = [one["context_nats/raw"] for one in found]
    assert len(set(values)) == 3, "each probe sees newer parameters"
    happened = list(read_events(folder))
    events = [event for event in happened if event["kind"] == "probe"]
    assert [(event["step"], event["final"]) for event in events] == [(2, False), (4, False), (5, True)]
    records = list(read_metrics(folder / "metrics.jsonl"))
    assert ["evaluation_seconds" in record for record in records] == [False, False, True, False, True]
    seconds = goodput(records, happened)
    assert abs(seconds["evaluation"] - sum(event["seconds"] for event in events)) < 0.5
    assert not (tmp_path / "plain" / "stages" / "only" / "probes.jsonl").exists()


def test_a_probe_that_a_stop_left_out_is_made_at_the_restart(make_config, tmp_path):
    config = make_config(steps=5, batch_rows=2, train={"probe": {"every_steps": 2}})
    whole, cut = (config.model_copy(update={"run_dir": str(tmp_path / name)}) for name in ("whole", "cut"))

    def probe(params):
        return {"context_nats/raw": float(sum(abs(leaf).sum() for leaf in jax.tree.leaves(params)))}

    quick = one_stage.quick_step()

    class Asking(SilentReporter):
        def step(self, record):
            if record["step"] == 0:
                signal.raise_signal(signal.SIGTERM)

    def probed(name):
        lines = read_metrics(tmp_path / name / "stages" / "only" / "probes.jsonl")
        return [(one["step"], one["context_nats/raw"]) for one in lines]

    one_stage.run_only(whole, probe=probe, make_step=quick)
    with pytest.raises(SystemExit):
        one_stage.run_only(cut, Asking(), probe=probe, make_step=quick)
    assert probed("cut") == []
    one_stage.run_only(cut, probe=probe, make_step=quick)
    assert probed("cut") == probed("whole") and [step for step, _ in probed("cut")] == [2, 4, 5]

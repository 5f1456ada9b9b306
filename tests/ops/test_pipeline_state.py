"""The state of the pipeline: done steps, interrupted attempts, time and memory."""

import json

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.files import write_json
from lclm_jax.ops.pipeline_state import PipelineState


def test_a_finished_step_is_done_for_the_same_inputs_only(tmp_path):
    path = tmp_path / "pipeline.json"
    with PipelineState(path).record("prepare", "a") as entry:
        entry["result"] = {"records": 3}
    again = PipelineState(path)
    assert again.done("prepare", "a")
    assert not again.done("prepare", "b")
    assert again.steps["prepare"]["result"] == {"records": 3}
    assert again.steps["prepare"]["peak_memory_bytes"] > 1e6


def test_an_interrupted_step_is_not_done_and_its_time_counts(tmp_path):
    path = tmp_path / "pipeline.json"
    with pytest.raises(SystemExit), PipelineState(path).record("train", "a"):
        raise SystemExit(75)
    first = PipelineState(path)
    assert not first.done("train", "a")
    spent = first.steps["train"]["wall_seconds"]
    with first.record("train", "a"):
        pass
    assert first.steps["train"]["attempts"] == 2
    assert first.steps["train"]["wall_seconds"] >= spent


def test_a_damaged_state_says_what_to_do(tmp_path):
    path = tmp_path / "pipeline.json"
    path.write_text("{")
    with pytest.raises(LclmError, match="delete it"):
        PipelineState(path)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}

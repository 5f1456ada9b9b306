import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.train.core import one_stage, programs

from lclm_jax.drills.faulty_train import nan_gradients_at
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints
from lclm_jax.train.checkpoints.provenance import ChangedConfigError, checkpoints_folder
from lclm_jax.train.core import loop
from lclm_jax.train.core.hooks import Hook
from lclm_jax.train.core.stage_run import TrainingDiverged
from lclm_jax.train.core.step import make_train_step
from lclm_jax.train.logging.events import read_events
from lclm_jax.train.logging.metrics import MetricsLog
from lclm_jax.train.logging.progress import SilentReporter
from lclm_jax.train.logging.records import MEASURED, read_metrics

SCRIPT = Path(one_stage.__file__)


@pytest.fixture
def config(make_config, tmp_path):
    small = make_config(steps=8, batch_rows=2, train={"checkpoint": {"every_steps": 3}})
    return small.model_copy(update={"run_dir": str(tmp_path / "run")})


def records(config):
    return list(read_metrics(Path(config.run_dir) / "stages" / "only" / "metrics.jsonl"))


def exact(config):
    """What must not depend on interruptions."""
    return [
        {name: value for name, value in record.items() if not name.endswith(MEASURED)} for record in records(config)
    ]


def final_params(config):
    with Checkpoints(checkpoints_folder(config, "only")) as checkpoints:
        return checkpoints.restore_params(config.stages["only"].steps, abstract_params(config.model))


def in_process(config, tmp_path, *arguments):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    cache = jax.config.jax_compilation_cache_dir
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, str(SCRIPT), str(path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_killed_run_goes_on_bit_for_bit(config, tmp_path, caplog):
    with caplog.at_level("DEBUG", logger="jax._src.dispatch"), jax.log_compiles():
        one_stage.run_only(config, make_step=make_train_step)
    compiles = [line for line in caplog.messages if "Finished XLA compilation of jit(train_step)" in line]
    assert len(compiles) == 1
    killed = config.model_copy(update={"run_dir": str(tmp_path / "killed")})
    result = in_process(killed, tmp_path, "5")
    assert result.returncode == -signal.SIGKILL, result.stderr
    with Checkpoints(checkpoints_folder(killed, "only")) as checkpoints:
        assert checkpoints.latest() in (None, 3)  # None: killed before the background write ended
    assert [record["step"] for record in records(killed)] in ([0, 1, 2, 3], [0, 1, 2])
    one_stage.run_only(killed)
    assert exact(killed) == exact(config)
    assert [record["step"] for record in exact(config)] == list(range(8))
    same = jax.tree.map(np.array_equal, final_params(killed), final_params(config))
    assert jax.tree.all(same)
    first = records(config)[0]
    assert first["compile_seconds"] > 0 and first["raw_tokens_per_s"] > 0 and first["loss_nats"] > 0
    assert {"learning_rate/adapter", "grad_norm", "grad_norm/encoder", "decoder_fill", "data_wait_seconds"} <= set(
        first
    )


def test_other_settings_or_rows_are_refused_by_name(config):
    one_stage.run_only(short := with_stage(config, steps=3))
    changed = with_stage(short, lr={"adapter": 5e-3, "encoder": 1e-2, "decoder": 1e-2})
    with pytest.raises(ChangedConfigError, match=r"stages.only.lr.adapter: 0.01 -> 0.005\); set them back, delete"):
        one_stage.run_only(changed)
    with pytest.raises(CheckpointError, match="was trained on other rows"):
        one_stage.run_only(short, digest="e" * 64)
    free = short.model_copy(update={"train": short.train.model_copy(update={"log_every": 7}), "name": "other"})
    one_stage.run_only(free)
    longer = with_stage(changed, steps=4)
    one_stage.run_only(longer, force=True, digest="e" * 64)
    (forced,) = [event for event in read_events(Path(config.run_dir) / "stages/only") if event["kind"] == "forced"]
    assert forced["step"] == 3 and forced["differences"] == [
        "stages.only.lr.adapter: 0.01 -> 0.005",
        "stages.only.steps: 3 -> 4",
        "rows: index dddddddddddd, now eeeeeeeeeeee",
    ]
    with Checkpoints(checkpoints_folder(config, "only")) as checkpoints:
        assert checkpoints.meta(4)["forced"] == forced["differences"]
    one_stage.run_only(longer, digest="e" * 64)  # from here on the new settings are the checkpoint's own


def with_stage(config, **changes):
    values = config.model_dump(mode="json")
    values["stages"]["only"] |= changes
    return type(config).model_validate(values)


def spoil(batch):
    return batch._replace(loss_weights=np.where(batch.loss_weights > 0, np.inf, 0).astype(np.float32))


def test_nothing_but_nonfinite_updates_stops_the_run(config):
    config = config.model_copy(update={"train": config.train.model_copy(update={"max_nonfinite_steps": 2})})

    def change(number, batch):
        return batch if number in (0, 2) else spoil(batch)

    with pytest.raises(
        TrainingDiverged,
        match=r"not finite in the last 2 steps \(to step 4\); the last checkpoint before is that of step 3",
    ):
        one_stage.run_only(config, change=change)
    assert [record["loss_nats"] is None for record in records(config)] == [False, True, False, True, True]


def test_a_signal_saves_and_ends_with_status_75(config):
    class Asking(SilentReporter):
        def step(self, record):
            if record["step"] == 0:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        one_stage.run_only(config, Asking())
    assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(checkpoints_folder(config, "only")) as checkpoints:
        assert checkpoints.meta(checkpoints.latest())["rows_consumed"] == 2 * checkpoints.latest()
    assert len(records(config)) == checkpoints.latest() == 2


@pytest.mark.slow
def test_bfloat16_parameters_go_on_bit_for_bit(config, tmp_path):
    model = config.model.model_copy(update={"param_dtype": "bfloat16"})
    whole, cut = (config.model_copy(update={"model": model, "run_dir": str(tmp_path / name)}) for name in "ab")
    one_stage.run_only(whole)

    class Asking(SilentReporter):
        def step(self, record):
            if record["step"] == 3:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        one_stage.run_only(cut, Asking())
    one_stage.run_only(cut)
    found, expected = final_params(cut), final_params(whole)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("bfloat16")}
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected)) and exact(cut) == exact(whole)
    losses = [record["loss_nats"] for record in records(whole)]
    assert losses[-1] < losses[0]


def test_the_log_is_cut_where_a_stage_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    log = MetricsLog(path, first_step=2)
    log.write({"step": 2, "new": True})
    log.close()
    assert list(read_metrics(path)) == [{"step": 0}, {"step": 1}, {"step": 2, "new": True}]


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = MetricsLog(path, first_step=0)
    log.write({"step": 0})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
        for step in (1, 2):
            log.write({"step": step})
        assert path.read_text() == '{"step": 0}\n' and caplog.text.count("wait for room") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write({"step": 3})
    log.close()
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]
    log = MetricsLog(path, first_step=9)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        log.write({"step": 9})
        with pytest.raises(LclmError, match=r"cannot write .*metrics.jsonl .*1 lines are lost.*free some space"):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def damage(folder, step, item="rest"):
    """Cut a file of the checkpoint of ``step`` short."""
    files = [path for path in (folder / str(step) / item).rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-5])


def test_a_damaged_checkpoint_is_named_kept_and_the_one_before_used(config, caplog):
    one_stage.run_only(config)
    uninterrupted, expected = exact(config), final_params(config)
    folder = checkpoints_folder(config, "only")
    damage(folder, 8)
    one_stage.run_only(config)
    assert "8 is damaged" in caplog.text and "Resuming from step 6" in caplog.text
    assert list(folder.glob("damaged-8-*")) and exact(config) == uninterrupted
    assert jax.tree.all(jax.tree.map(np.array_equal, final_params(config), expected))
    begins = [event for event in read_events(folder.parent) if event["kind"] == "begin"]
    assert [(event["step"], event["redone_steps"]) for event in begins] == [(0, 0), (6, 2)]
    for step, item in ((6, "rest"), (8, "meta")):
        damage(folder, step, item)
    with pytest.raises(CheckpointError, match=r"every checkpoint of stage only is damaged .*restore a copy"):
        one_stage.run_only(config)


def test_a_spike_is_rewound_and_skipped(make_config, tmp_path, monkeypatch):
    spike = {"window": 4, "deviations": 20, "patience": 2, "rewind": True}
    config = make_config(steps=8, batch_rows=2, train={"checkpoint": {"every_steps": 3}, "spike": spike})
    config = config.model_copy(update={"run_dir": str(tmp_path / "run")})

    def with_spike(*arguments):
        train_step = programs.train_step(*arguments)

        def step(state, batch):
            number = int(jax.device_get(state.step))
            state, metrics = train_step(state, batch)
            if number in (5, 6):
                metrics["loss_nats"] = jax.device_put(np.float32(99))
            return state, metrics

        return step

    one_stage.run_only(config, make_step=with_spike)
    folder = checkpoints_folder(config, "only")
    events = list(read_events(folder.parent))
    assert [event["kind"] for event in events if event["kind"] in ("spike", "rewind", "begin")] == [
        "begin", "spike", "rewind", "begin",
    ]  # fmt: skip
    assert events[-1]["kind"] == "end" and list(folder.glob("rewound-6-*"))
    assert [record["step"] for record in records(config) if record["skipped"]] == [5, 6]
    assert [record["step"] for record in records(config)] == list(range(8))
    monkeypatch.setattr(loop, "read_rewinds", lambda folder: [])  # the spike comes again and again
    with pytest.raises(TrainingDiverged, match=r"loss spike in steps 5 to 6, after 0 rewinds"):
        limited = config.model_copy(update={"run_dir": str(tmp_path / "limited")})
        spike = limited.train.spike.model_copy(update={"max_rewinds": 0})
        limited = limited.model_copy(update={"train": limited.train.model_copy(update={"spike": spike})})
        one_stage.run_only(limited, make_step=with_spike)


def test_an_emergency_checkpoint_is_newer_than_the_checkpoint(config, tmp_path, caplog):
    local = {"every_steps": 6, "local_dir": str(tmp_path / "local"), "local_every_steps": 2}
    values = config.model_dump(mode="json")
    values["train"]["checkpoint"] |= local
    config = type(config).model_validate(values)
    one_stage.run_only(config)
    expected = final_params(config)
    folder = checkpoints_folder(config, "only")
    again = config.model_copy(update={"run_dir": str(tmp_path / "again")})

    def stop(number, batch):
        if number == 5:
            raise LclmError("stop here")
        return batch

    with pytest.raises(LclmError, match="stop here"):
        one_stage.run_only(again, change=stop)
    with caplog.at_level("INFO"):
        one_stage.run_only(again)
    assert "resuming from the emergency checkpoint of step 4" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, final_params(again), expected))
    assert folder.exists()


def test_steps_with_nan_gradients_are_skipped_and_their_rows_written_down(config):
    one_stage.run_only(config, make_step=nan_gradients_at([2, 3]))
    assert [record["nonfinite"] for record in records(config)] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert records(config)[2]["updated/adapter"] == 0 and records(config)[4]["updated/adapter"] == 1
    written = json.loads((Path(config.run_dir) / "stages" / "only" / "nonfinite" / "step-3.json").read_text())
    assert written["not_finite"] == "gradient" and set(written["rows"]) == {"6", "7"}


def test_rows_whose_loss_is_not_finite_are_named(config):
    def change(number, batch):
        if number != 4:
            return batch
        weights = np.array(batch.loss_weights)
        weights[1] = np.where(weights[1] > 0, np.inf, 0)
        return batch._replace(loss_weights=weights)

    one_stage.run_only(config, change=change)
    written = json.loads((Path(config.run_dir) / "stages" / "only" / "nonfinite" / "step-4.json").read_text())
    assert written["not_finite"] == "loss" and list(written["rows"]) == ["9"]


def test_hooks_are_told_of_their_steps_and_change_nothing(config, tmp_path):
    one_stage.run_only(config)
    hooked, told, params = config.model_copy(update={"run_dir": str(tmp_path / "hooked")}), [], []

    def tell(info):
        told.append((info.stage, info.step, info.steps, info.metrics["loss_nats"]))
        params.append(np.array(info.params["adapter"]["fc1"]["bias"]))

    ends = []
    hooks = [Hook(every=3, call=tell), Hook(every=None, call=lambda info: ends.append(info.step), at_end=True)]
    one_stage.run_only(hooked, hooks=hooks)
    losses = [record["loss_nats"] for record in records(config)]
    assert told == [("only", 3, 8, losses[2]), ("only", 6, 8, losses[5])] and ends == [8]
    assert exact(hooked) == exact(config) and not np.array_equal(*params)
    with Checkpoints(checkpoints_folder(hooked, "only")) as checkpoints:
        saved = checkpoints.restore_params(6, abstract_params(config.model))
    np.testing.assert_array_equal(saved["adapter"]["fc1"]["bias"], params[1])
    assert records(hooked)[3]["hooks_seconds"] > 0


SPIKING = one_stage.quick_step({5: 99, 6: 99})
"""A spike in updates 5 and 6."""


@pytest.fixture
def spiky(make_config, tmp_path):
    """A configuration that notices ``SPIKING``; keys of ``train.spike`` and ``train.checkpoint`` as arguments."""

    def make(checkpoint=None, **spike):
        spike = {"window": 4, "deviations": 20, "patience": 2, **spike}
        train = {"checkpoint": {"every_steps": 3, **(checkpoint or {})}, "spike": spike}
        return make_config(steps=8, batch_rows=2, train=train).model_copy(update={"run_dir": str(tmp_path / "run")})

    return make


class AskingAt(SilentReporter):
    """Raises SIGTERM when it is told of a step."""

    def __init__(self, step):
        self._step = step

    def step(self, record):
        if record["step"] == self._step:
            signal.raise_signal(signal.SIGTERM)


def of_kind(config, *kinds):
    return [event for event in read_events(Path(config.run_dir) / "stages/only") if event["kind"] in kinds]


def test_a_rewind_also_undoes_local_copies(spiky, tmp_path):
    local = {"local_dir": str(tmp_path / "local"), "local_every_steps": 1}
    config = spiky(local, rewind=True)
    one_stage.run_only(config, make_step=SPIKING)
    assert [record["step"] for record in records(config) if record["skipped"]] == [5, 6]
    assert [event["step"] for event in of_kind(config, "begin")] == [0, 5]
    assert not list((tmp_path / "local").rglob("*.safetensors")), "the stage is finished"


def test_a_spike_is_noticed_over_a_restart(spiky):
    config = spiky()
    with pytest.raises(SystemExit):
        one_stage.run_only(config, AskingAt(4), make_step=SPIKING)
    with Checkpoints(checkpoints_folder(config, "only")) as checkpoints:
        assert checkpoints.latest() == 6
    one_stage.run_only(config, make_step=SPIKING)
    (event,) = of_kind(config, "spike")
    assert (event["first"], event["last"]) == (5, 6)


def test_a_request_to_stop_during_a_rewind_is_kept(spiky, monkeypatch):
    config, add = spiky(rewind=True), loop.add_rewind

    def interrupted(folder, rewind):
        signal.raise_signal(signal.SIGTERM)
        add(folder, rewind)

    monkeypatch.setattr(loop, "add_rewind", interrupted)
    with pytest.raises(SystemExit) as stopped:
        one_stage.run_only(config, make_step=SPIKING)
    assert stopped.value.code == 75
    assert [(event["kind"], event["step"]) for event in of_kind(config, "begin", "stop")] == [("begin", 0), ("stop", 3)]
    monkeypatch.setattr(loop, "add_rewind", add)
    one_stage.run_only(config, make_step=SPIKING)
    assert [record["step"] for record in records(config) if record["skipped"]] == [5, 6]


def test_updates_that_are_not_finite_are_counted_over_a_restart(config):
    config = config.model_copy(update={"train": config.train.model_copy(update={"max_nonfinite_steps": 4})})
    bad = one_stage.quick_step(nonfinite=(2, 3, 4, 5))
    with pytest.raises(SystemExit):
        one_stage.run_only(config, AskingAt(2), make_step=bad)
    with pytest.raises(TrainingDiverged, match="not finite in the last 4 steps"):
        one_stage.run_only(config, make_step=bad)

"""Real processes through `lclm train`: same losses, checkpoints for any number of them, deaths."""

import importlib.util
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint

spec = importlib.util.spec_from_file_location("launch", Path(__file__).with_name("launch.py"))
launching = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launching)
DEMO, launch, settings = launching.DEMO, launching.launch, launching.settings
STEPS = 8


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Folder of a run whose data are prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    statuses, texts = launch("data", "prepare", DEMO, *settings(folder)).wait()
    assert statuses == [0], texts
    return folder


@pytest.fixture
def train(prepared, tmp_path):
    """``train(name, processes, devices, *settings)``: start a run, or go on with one, in the folder ``name``."""

    def start(name, processes, devices, *more, **options):
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(prepared, folder)
            (folder / "config.yaml").unlink()  # other stages and steps may train on the same data
        options = {"processes": processes, "devices": devices} | options
        return folder, launch("train", DEMO, *settings(folder, *more), **options)

    def start_and_wait(*arguments, **options):
        folder, launched = start(*arguments, **options)
        statuses, texts = launched.wait()
        assert set(statuses) == {0}, "\n\n".join(texts)
        return folder

    start_and_wait.start = start
    return start_and_wait


def losses(folder):
    lines = (folder / "stages" / "base" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["loss_nats"] for record in records]


def parameters(folder, step=STEPS):
    saved = LazyCheckpoint(folder / "stages" / "base" / "checkpoints" / str(step))
    return {path: saved.read(path) for path in saved.shapes}


def forget_after(folder, step):
    """As if the run had been cut off after the checkpoint of ``step``."""
    for checkpoint in (folder / "stages" / "base" / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)


def test_several_processes_compute_what_one_does(train):
    one = losses(train("one", 1, 1))
    assert len(one) == STEPS
    for name, processes, devices, mesh in (
        ("four-devices", 1, 4, "{fsdp: 4}"),
        ("two", 2, 2, "{replica: 2, fsdp: 2}"),
        ("four", 4, 1, "{replica: 2, tensor: 2}"),
        # Context over processes: each of them reads the same rows and holds other positions of them.
        ("context", 2, 1, "{context: 2}"),
    ):
        np.testing.assert_allclose(losses(train(name, processes, devices, f"mesh={mesh}")), one, rtol=1e-5)


def test_a_checkpoint_of_four_goes_on_with_four_two_and_one(train, tmp_path):
    four = train("four", 4, 1)
    whole, final = losses(four), parameters(four)
    for name, processes, devices, more in (
        ("again", 4, 1, ()),
        ("two", 2, 1, ("mesh={context: 2}",)),
        ("one", 1, 1, ()),
    ):
        shutil.copytree(four, tmp_path / name)
        forget_after(tmp_path / name, 3)
        folder = train(name, processes, devices, *more)
        if name == "again":  # the same topology: bit for bit
            assert losses(folder) == whole
            assert all((value == final[path]).all() for path, value in parameters(folder).items())
        np.testing.assert_allclose(losses(folder), whole, rtol=1e-5)
        rows = json.loads((folder / "stages" / "base" / "checkpoints" / str(STEPS) / "meta" / "metadata").read_text())
        assert rows["rows_consumed"] == STEPS * 4


def test_the_same_command_goes_on_with_fewer_devices_and_with_more(train, tmp_path):
    """4, 2 and 4 replicas; 3 do not divide the batch, and the nearest counts that do are named."""
    elastic = ("mesh={replica: -1, fsdp: 1}",)
    folder = train("elastic", 1, 4, *elastic)
    whole = losses(folder)
    for devices, kept in ((2, 3), (4, 6)):
        forget_after(folder, kept)
        assert train("elastic", 1, devices, *elastic) == folder
        np.testing.assert_allclose(losses(folder), whole, rtol=1e-5)
    forget_after(folder, 6)
    statuses, texts = train.start("elastic", 1, 3, *elastic)[1].wait()
    assert statuses == [1] and "or take devices for 2 or 4 parts" in texts[0]
    events = [json.loads(line) for line in (folder / "stages" / "base" / "events.jsonl").read_text().splitlines()]
    begun = [event for event in events if event["kind"] == "begin"]
    assert [event["environment"]["devices"][0] for event in begun] == ["4", "2", "4"]
    assert [event["step"] for event in begun] == [0, 3, 6]


def test_when_one_is_killed_the_others_stop_and_a_restart_goes_on_bit_for_bit(train):
    steps = "stages.base.steps=40"
    whole = train("whole", 2, 1, steps)
    for victim, after in ((0, 6), (1, 16)):
        folder, launched = train.start("killed", 2, 1, steps)
        wait_for_steps(folder, launched, after)
        killed = time.monotonic()
        launched.processes[victim].kill()
        statuses, texts = launched.wait(timeout=60)
        assert time.monotonic() - killed < 20
        assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 75, texts
        assert f"process {victim} of 2 (" in texts[1 - victim] and "exited unexpectedly" in texts[1 - victim]
        assert after <= len(losses(folder)) < 40
    assert losses(train("killed", 2, 1, steps)) == losses(whole)
    expected = parameters(whole, 40)
    assert all((value == expected[path]).all() for path, value in parameters(folder, 40).items())


def wait_for_steps(folder, launched, steps):
    metrics = folder / "stages" / "base" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < steps:
        assert time.monotonic() < deadline, "too slow"
        assert all(process.poll() is None for process in launched.processes), launched.wait()
        time.sleep(0.02)


def test_a_signal_to_one_saves_and_stops_all(train):
    folder, launched = train.start("stopped", 2, 1)
    wait_for_steps(folder, launched, 1)
    launched.processes[1].send_signal(signal.SIGTERM)
    statuses, texts = launched.wait(timeout=60)
    assert statuses == [75, 75], texts
    assert len(losses(train("stopped", 2, 1))) == STEPS


def test_a_process_that_never_comes_is_named_by_all(tmp_path):
    more = settings(tmp_path / "run", "train.processes={start_timeout_seconds: 3, lost_timeout_seconds: 20}")
    statuses, texts = launch("train", DEMO, *more, processes=4, skip=(2,)).wait(timeout=60)
    assert statuses == [1, 1, 1]
    assert all("process 2 of 4 did not connect to localhost:" in text for text in texts)


def test_an_error_of_one_process_ends_all(train, prepared):
    """Process 0 finds the run's folder in use; the others cannot know."""
    from lclm_jax.ops.run_folder import locked

    folder = Path(shutil.copytree(prepared, prepared.parent / "in-use"))
    with locked(folder):
        statuses, texts = launch("train", DEMO, *settings(folder), processes=2).wait(timeout=60)
    assert statuses == [1, 75], texts
    assert "process 0 of 2 (" in texts[1] and "failed: " in texts[1]


def test_a_truncated_local_copy_of_one_process_is_used_by_none(train, tmp_path):
    local = ("train.checkpoint={every_steps: 100}", f"train.checkpoint.local_dir={tmp_path / 'local'}")
    more = ("stages.base.steps=24", *local, "train.checkpoint.local_every_steps=2")
    whole = losses(train("whole", 2, 1, *more))
    folder, launched = train.start("cut", 2, 1, *more)
    wait_for_steps(folder, launched, 9)
    for process in launched.processes:
        process.kill()
    launched.wait(timeout=60)
    copies = sorted(
        (tmp_path / "local").rglob("*.process-1-of-2.safetensors"), key=lambda path: int(path.name.split(".")[0])
    )
    steps = [int(path.name.split(".")[0]) for path in copies]
    copies[-1].write_bytes(copies[-1].read_bytes()[:-100])
    _, launched = train.start("cut", 2, 1, *more)
    statuses, texts = launched.wait()
    assert statuses == [0, 0], texts
    assert f"resuming from the emergency checkpoint of step {steps[0]}" in texts[0], texts
    assert f"{copies[-1].name} cannot be used" in texts[1]
    assert losses(folder) == whole
    assert not list((tmp_path / "local").rglob("*.safetensors")), "the stage is finished"


def test_a_machine_with_an_empty_disk_gets_its_local_copy_from_another_replica(train, tmp_path):
    local = ("train.checkpoint={every_steps: 100}", f"train.checkpoint.local_dir={tmp_path / 'local'}")
    more = ("stages.base.steps=24", "mesh={replica: 2, fsdp: 1}", *local, "train.checkpoint.local_every_steps=2")
    whole = losses(train("whole", 2, 1, *more))
    folder, launched = train.start("lost", 2, 1, *more)
    wait_for_steps(folder, launched, 9)
    for process in launched.processes:
        process.kill()
    launched.wait(timeout=60)
    for path in (tmp_path / "local").rglob("*.process-0-of-2.safetensors"):
        path.unlink()
    steps = [int(path.name.split(".")[0]) for path in (tmp_path / "local").rglob("*.process-1-of-2.safetensors")]
    _, launched = train.start("lost", 2, 1, *more)
    statuses, texts = launched.wait()
    assert statuses == [0, 0], texts
    assert f"step {max(steps)} is taken from replica 1, which has it whole" in texts[0], texts
    assert f"resuming from the emergency checkpoint of step {max(steps)}" in texts[0], texts
    assert losses(folder) == whole


def test_two_processes_undo_spikes_together(train):
    spike = "train.spike={window: 4, deviations: 0.01, patience: 1, rewind: true, max_rewinds: 20}"
    folder = train("spiky", 2, 1, "stages.base.steps=12", spike)
    rewinds = json.loads((folder / "stages" / "base" / "rewinds.json").read_text())
    records = [json.loads(line) for line in (folder / "stages" / "base" / "metrics.jsonl").read_text().splitlines()]
    assert rewinds and [record["step"] for record in records if record["skipped"]] == sorted(
        first for first, _ in rewinds
    )

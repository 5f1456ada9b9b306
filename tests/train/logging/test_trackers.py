"""Trackers by name, against modules that only write down what they are told."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lclm_jax.train.logging.progress import SilentReporter
from lclm_jax.train.logging.trackers import Reporters, TrackerError, open_trackers

STAGE = {"lr": {"adapter": 1e-3}, "steps": 5, "mixture": {"cpt": 1}, "batch_rows": 8}


@pytest.fixture
def make_run(make_config, tmp_path):
    def make(*names):
        config = make_config(stages={"one": STAGE, "two": STAGE}, train={"trackers": list(names)})
        return config.model_copy(update={"run_dir": str(tmp_path / "run")})

    return make


def follow(config):
    """Two steps and a probe of the second stage, whose steps come after the five of the first."""
    trackers = open_trackers(config)
    reporter = Reporters([SilentReporter(), *trackers])
    reporter.start("two", 0, 5)
    reporter.step({"step": 0, "loss_nats": 2.5, "skipped": 0.0})
    reporter.step({"step": 1, "loss_nats": None, "skipped": 1.0})
    reporter.probe(2, {"context_nats/raw": 1.5})
    reporter.finish()
    for tracker in trackers:
        tracker.close()


EXPECTED = [
    (5, {"train/loss_nats": 2.5, "train/skipped": 0.0}),
    (6, {"train/skipped": 1.0}),
    (6, {"probe/context_nats/raw": 1.5}),
]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_runs_are_opened_by_name_and_told_every_number(make_run, monkeypatch, name):
    told, opened = [], []

    def init(**settings):
        opened.append(settings)
        return SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end"))

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init))
    follow(make_run(name))
    assert told == [*EXPECTED, "end"]
    assert opened[0]["name"] == "tiny" and opened[0]["resume"] == "allow"
    assert opened[0]["config"]["stages"]["two"]["steps"] == 5


def test_goodput_is_told_when_each_step_began(make_run, monkeypatch):
    told = []

    class Recorder:
        def __init__(self, *arguments):
            told.append(arguments)

        def record_job_start_time(self):
            told.append("job")

        def record_step_start_time(self, step, time):
            told.append((step, time.timestamp()))

        def record_job_end_time(self):
            told.append("end")

    module = SimpleNamespace(GoodputRecorder=Recorder)
    monkeypatch.setitem(sys.modules, "ml_goodput_measurement", SimpleNamespace(goodput=module))
    monkeypatch.setitem(sys.modules, "ml_goodput_measurement.goodput", module)
    (tracker,) = open_trackers(make_run("ml_goodput"))
    tracker.start("two", 0, 5)
    tracker.step({"step": 0, "loss_nats": 2.5, "unix_seconds": 100.0, "wall_seconds": 2.0})
    tracker.probe(1, {"context_nats/raw": 1.5})
    tracker.close()
    assert told == [("tiny", "goodput_tiny", True), "job", (5, 98.0), "end"]


def test_tensorboard_gets_scalars(make_run, monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            told.append((step, {name: value}))

        def close(self):
            told.append(self.folder)

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    config = make_run("tensorboard")
    follow(config)
    flat = [(step, {name: value}) for step, values in EXPECTED for name, value in values.items()]
    assert told == [*flat, f"{config.run_dir}/tensorboard"]


def test_a_tracker_that_fails_does_not_end_training(make_run, monkeypatch):
    told, failed = [], []

    def log(values, step):
        told.append(step)
        raise OSError("no route to host")

    monkeypatch.setattr("threading.excepthook", lambda what: failed.append((what.thread.name, what.exc_type)))
    run = SimpleNamespace(log=log, finish=lambda: told.append("end"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: run))
    follow(make_run("wandb"))
    assert told == [5, "end"] and failed == [("tracker wandb", OSError)]


def test_a_missing_package_names_its_extra(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackerError, match=r"names wandb, which is not installed; pip install 'lclm-jax\[wandb\]'"):
        open_trackers(make_run("wandb"))


def test_tensorboard_writes_event_files(make_run):
    pytest.importorskip("tensorboardX")
    config = make_run("tensorboard")
    follow(config)
    (file,) = (Path(config.run_dir) / "tensorboard").glob("events*")
    assert b"train/loss_nats" in file.read_bytes()

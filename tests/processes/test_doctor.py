"""`lclm doctor` in several real processes, each fault planted in one of them."""

import importlib.util
import json
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("launch", Path(__file__).with_name("launch.py"))
launching = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launching)
DEMO, launch, settings = launching.DEMO, launching.launch, launching.settings

LATE = "import time; now = time.time; time.time = lambda: now() + 90"
OTHER_BITS = "from lclm_jax.doctor import devices as d; f = d._product; d._product = lambda x, y: f(x, y) + 1"
WRONG_SUM = "import jax; f = jax.lax.psum; jax.lax.psum = lambda x, axis: f(x, axis) + 1"
FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))"
OTHER_FOLDER = "import os; os.chdir('{folder}')"


@pytest.fixture
def doctor(tmp_path):
    """``doctor(fault)``: statuses and findings (check -> finding) where process 1 begins with the code ``fault``."""

    def run(fault="", run_dir=None, processes=2, **options):
        path = tmp_path / "found.json"
        arguments = ("doctor", DEMO, *settings(run_dir or tmp_path / "run", *options.pop("more", ())), "--json", path)
        faults = {1: fault.format(folder=tmp_path)}
        launched = launch(*arguments, processes=processes, devices=2, before=faults, **options)
        statuses, texts = launched.wait()
        assert path.exists(), texts
        return statuses, {
            one["check"]: one for one in json.loads(path.read_text())["findings"] if one["status"] != "ok"
        }

    return run


def test_nothing_is_found_where_nothing_is_wrong(doctor):
    statuses, found = doctor(more=("mesh={replica: 2, fsdp: 2}",))
    assert statuses == [0, 0] and not found


@pytest.mark.parametrize(
    ("fault", "check", "words", "status"),
    [
        (LATE, "clocks", "clocks are 90.", 1),
        (OTHER_BITS, "compute", "of process 1 computes other bits than the rest", 1),
        (WRONG_SUM, "all-reduce fsdp", "wrong result in process 1", 1),
        (FEW_FILES, "open files", "only 1,000 files may be open", 0),
    ],
)
def test_a_fault_of_one_process_is_found(doctor, fault, check, words, status):
    statuses, found = doctor(fault)
    assert statuses == [status, status]
    assert list(found) == [check] and words in found[check]["message"]


def test_a_folder_that_is_another_one_in_one_process(doctor, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    statuses, found = doctor(OTHER_FOLDER, run_dir="runs/x")
    assert statuses == [1, 1]
    assert "process 0 does not see what process 1 wrote" in found["shared folder"]["message"]


def test_a_process_that_never_comes(doctor):
    statuses, found = doctor(skip=(1,), more=("train.processes.start_timeout_seconds=3",))
    assert statuses == [1] and "process 1 of 2 did not connect" in found["processes"]["message"]


def test_training_begins_with_the_checks_if_it_is_asked_to(tmp_path):
    more = settings(tmp_path / "run", "mesh={fsdp: 3}")
    statuses, texts = launch("train", DEMO, *more, processes=2, LCLM_PREFLIGHT="1").wait()
    assert statuses == [1, 1], texts
    assert "takes 3 devices and there are 2" in texts[0]
    assert all("the checks before the run failed" in text for text in texts)
    assert not (tmp_path / "run").exists()

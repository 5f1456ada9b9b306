import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lclm_jax.config import load_config
from lclm_jax.drills import rehearsal as drill
from lclm_jax.drills.faults import FAULTS, _wait_until, nan_gradients, newest_copy
from lclm_jax.drills.small_disk import SmallDisk
from lclm_jax.drills.trainer import DrillFailure, Trainer

CONFIG = Path(__file__).parents[2] / "configs" / "demo-chaos.yaml"


def test_every_kind_strikes_as_often_and_the_order_is_the_seeds():
    strikes = drill.plan_strikes(20, 40, seed=1)
    counts = {kind: sum(strike.kind == kind for strike in strikes) for kind in FAULTS}
    assert set(counts.values()) == {2} and len(strikes) == 20
    steps = [strike.step for strike in strikes]
    assert steps == sorted(steps) and all(b - a > 20 for a, b in itertools.pairwise(steps))
    assert strikes == drill.plan_strikes(20, 40, seed=1) != drill.plan_strikes(20, 40, seed=2)


def test_a_drill_is_long_enough(tmp_path):
    strikes = drill.plan_strikes(len(FAULTS), 30, seed=0)
    config = drill.drill_config(load_config(CONFIG), strikes, 30, tmp_path)
    assert config.stages["only"].steps > strikes[-1].step + 30
    # All faults but the first must find checkpoints to fall back on.
    assert strikes[0].step >= 3 * config.train.checkpoint.every_steps


def test_the_newest_copy_is_one_that_both_processes_have(tmp_path):
    config = load_config(CONFIG).model_copy(update={"run_dir": str(tmp_path / "run")})
    trainer = Trainer(config, patience_seconds=20)
    with_copies = load_config(tmp_path / "run.local.yaml")
    assert with_copies.train.checkpoint.local_dir == str(tmp_path / "run.local")
    assert with_copies.mesh.replica == 2, "or there is no other replica to give what was lost"
    folder = tmp_path / "run.local" / "demo-chaos" / "only" / "id"
    folder.mkdir(parents=True)
    assert newest_copy(trainer) == -1
    for name in ("6.process-0-of-2", "9.process-0-of-2", "6.process-1-of-2", "12.process-0-of-1"):
        (folder / f"{name}.safetensors").touch()
    assert newest_copy(trainer) == 6 and len(trainer.copies(0)) == 2


def test_a_small_disk_is_full_for_the_process_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("lclm_jax.drills.small_disk.shutil.which", lambda name: None)  # no right to mount
    writer = "import sys; sys.stdin.readline(); open(sys.argv[1], 'wb').write(bytes(10**5)); print('written')"
    with SmallDisk(tmp_path / "disk", 2**20) as disk:
        assert not disk.mounted
        command = [sys.executable, "-c", writer, str(tmp_path / "file")]
        for full in (True, False):
            process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)
            if full:
                with disk.full(process.pid):
                    _, error = process.communicate("\n")
                assert "File too large" in error
            else:
                assert process.communicate("\n")[0] == "written\n"


def trainer_with(tmp_path, records, name="run"):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    steps = SimpleNamespace(stages={"only": SimpleNamespace(steps=2)})
    return SimpleNamespace(folder=folder, checkpoints=folder / "checkpoints", stage="only", config=steps)


def test_nan_gradients_must_be_on_record_and_update_nothing(tmp_path):
    good = {"step": 0, "nonfinite": 0.0, "updated/adapter": 1.0}
    bad = {"step": 1, "nonfinite": 1.0, "updated/adapter": 0.0}
    nan_gradients(trainer_with(tmp_path, [good, bad]), random.Random(0), None)
    with pytest.raises(DrillFailure, match="0 steps with NaN gradients"):
        nan_gradients(trainer_with(tmp_path, [good], "none"), random.Random(0), None)
    with pytest.raises(DrillFailure, match="none may have updated"):
        nan_gradients(trainer_with(tmp_path, [good, bad | {"updated/adapter": 1.0}], "moved"), random.Random(0), None)


def test_runs_that_differ_are_told_apart(tmp_path, monkeypatch):
    records = [{"step": 0, "loss_nats": 2.0, "wall_seconds": 1.0}, {"step": 1, "loss_nats": 1.5, "wall_seconds": 1.0}]
    one = trainer_with(tmp_path, records, "one")
    other = trainer_with(tmp_path, [records[0] | {"wall_seconds": 9.0}, records[1] | {"loss_nats": 1.6}], "other")

    class Params:
        def __init__(self, folder):
            self.value, self.shapes = float("other" in str(folder)), {"adapter/fc1/bias": (1,)}

        def read(self, path):
            return [self.value]

    monkeypatch.setattr(drill, "LazyCheckpoint", Params)
    assert "has no final checkpoint" in drill.compare(one, other)[0]
    for trainer in (one, other):
        (trainer.checkpoints / "2").mkdir(parents=True)
    assert drill.compare(one, other) == ["parameter adapter/fc1/bias differs", "step 1: loss_nats differ"]
    assert drill.compare(one, one) == []


def test_a_trainer_that_dies_is_a_failure_with_its_last_words(tmp_path, monkeypatch):
    config = load_config(CONFIG).model_copy(update={"run_dir": str(tmp_path / "run")})
    trainer = Trainer(config, patience_seconds=20)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    trainer.start()
    with pytest.raises(DrillFailure, match="training died at step 0, before step 3"):
        trainer.wait_for_step(3)
    assert trainer.wait() == 1 and trainer.step() == 0 and trainer.saved() == []
    with pytest.raises(DrillFailure, match="waited for a word, and the trainer ended with status 1"):
        _wait_until(lambda: False, trainer, "a word")
    trainer.kill()
    assert os.path.exists(trainer.log())

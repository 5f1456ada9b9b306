import pytest

from lclm_jax.config import CheckpointConfig
from lclm_jax.train.checkpoints.checkpoint import CheckpointError
from lclm_jax.train.checkpoints.saver import CheckpointPolicy
from lclm_jax.train.logging.events import Events, read_events


class Disk:
    """Stands in for checkpoints: fails while ``full``."""

    def __init__(self):
        self.full, self.saved, self.later = False, [], None

    def save(self, state, step, meta):
        if self.full:
            raise CheckpointError("disk full")
        self.saved.append(step)

    def wait(self):
        self.raise_failure()

    def raise_failure(self):
        error, self.later = self.later, None
        if error:
            raise error


@pytest.fixture
def disk():
    return Disk()


def make(disk, tmp_path, clock=lambda: 0.0, **settings):
    return CheckpointPolicy(
        disk, CheckpointConfig(**{"every_steps": 10, "retry_seconds": 5, **settings}), Events(tmp_path), clock
    )


def test_by_step_by_time_and_at_the_end(disk, tmp_path):
    now = [0.0]
    saver = make(disk, tmp_path, lambda: now[0], every_minutes=1)
    assert [done for done in range(1, 26) if saver.due(done, 25)] == [10, 20, 25]
    now[0] = 61.0
    assert saver.due(3, 25)
    saver.save(None, 3, {})
    assert not saver.due(4, 25) and disk.saved == [3]


def test_a_failed_save_is_tried_again_and_stops_the_run_by_policy(disk, tmp_path, caplog):
    now = [0.0]
    saver = make(disk, tmp_path, lambda: now[0], max_failed_saves=3)
    disk.full = True
    saver.save(None, 10, {})
    assert "disk full" in caplog.text and "Training continues (failed save 1 of 3); next try in 5 s" in caplog.text
    assert not saver.due(11, 99)
    now[0] = 6.0
    assert saver.due(12, 99)
    saver.save(None, 12, {})
    disk.full = False
    now[0] = 12.0
    assert saver.due(13, 99)
    saver.save(None, 13, {})
    assert disk.saved == [13] and not saver.due(14, 99)
    disk.full = True
    for step in (20, 30):
        saver.save(None, step, {})
    with pytest.raises(CheckpointError, match="disk full"):
        saver.save(None, 40, {})
    kinds = [event["kind"] for event in read_events(tmp_path)]
    assert kinds == ["save_failed"] * 2 + ["save"] + ["save_failed"] * 3


def test_a_failure_in_the_background_is_noticed_at_the_next_step(disk, tmp_path):
    saver = make(disk, tmp_path, max_failed_saves=1)
    saver.save(None, 10, {})
    disk.later = CheckpointError("no space")
    with pytest.raises(CheckpointError, match="no space"):
        saver.due(11, 99)


def test_without_a_limit_only_the_last_save_of_a_stage_must_succeed(disk, tmp_path, monkeypatch):
    monkeypatch.setattr("lclm_jax.train.checkpoints.saver.time.sleep", lambda seconds: None)
    saver = make(disk, tmp_path, max_failed_saves=None)
    disk.full = True
    for step in range(10, 60, 10):
        saver.save(None, step, {})
    with pytest.raises(CheckpointError):
        saver.save(None, 60, {}, final=True)

import jax
import numpy as np
import pytest

from lclm_jax.train.logging.events import Events, read_events
from lclm_jax.train.supervise import stragglers as module
from lclm_jax.train.supervise.stragglers import StragglerMonitor, slow_process


@pytest.mark.parametrize(
    ("host_seconds", "slow"),
    [
        ([0.1, 0.1, 0.9, 0.1], 2),
        ([0.1, 0.25, 0.1, 0.1], None),  # a fifth of a step of 1 s is not reached
        ([0.9, 0.9, 0.95, 0.9], None),  # all are slow: nobody waits for one of them
        ([0.1, 0.4], 1),
    ],
)
def test_names_the_one_that_the_others_wait_for(host_seconds, slow):
    assert slow_process(host_seconds, step_seconds=1.0) == slow


def test_a_single_process_has_nobody_to_compare_with(tmp_path):
    hosts = StragglerMonitor("only", Events(tmp_path))
    hosts.add(1.0, 0.1, 0.8)
    assert hosts.compare() == {} and not list(tmp_path.iterdir())


def test_a_slow_process_is_told_once_while_it_stays_slow(tmp_path, monkeypatch, caplog):
    others = [np.array([1.0, 0.05, 0.0], np.float32)] * 2
    name = np.frombuffer(b"node17".ljust(64, b"\0"), np.uint8)

    def gathered(mine):  # this is process 0, and the last of three
        return np.stack([*others, mine] if mine.dtype == np.float32 else [mine, mine, name])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(module.multihost_utils, "process_allgather", gathered)
    hosts = StragglerMonitor("only", Events(tmp_path))
    for device_wait in (0.95, 0.2, 0.2, 0.95, 0.2):
        for _ in range(4):
            hosts.add(1.0, device_wait, data_wait=0.7)
        values = hosts.compare()
    assert values == pytest.approx({"host_max_seconds": 0.8, "host_median_seconds": 0.05})
    text = "process 2 of 3 (node17) is a straggler: 0.800 s of a step of 1.000 s pass outside of its device, 0.700"
    assert [text in message for message in caplog.messages] == [True, True]
    told = [(event["kind"], event["process"], event["host"]) for event in read_events(tmp_path)]
    assert told == [("slow_process", 2, "node17")] * 2

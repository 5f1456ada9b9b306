"""Goodput of a run that died once and was stopped once, against sums made by hand."""

import pytest

from lclm_jax.ops.goodput import goodput, productive_fraction, total

# Turned to at 100, begins at 110; steps 0 to 3 take 20 + 4 + 4 + 4; a save of 2 s is in step 3. Killed during step 4,
# after step 3 (saved at 3, so step 3 is made again); begins again at 160. Steps 3 and 4: 10 + 4. Stopped, saved in 3 s.
# Begins at 200; step 5; the end with a save of 2 s and a probe of 1 s.
RECORDS = [
    {"step": 0, "wall_seconds": 20.0, "compile_seconds": 15.0, "data_wait_seconds": 1.0},
    {"step": 1, "wall_seconds": 4.0, "data_wait_seconds": 0.5},
    {"step": 2, "wall_seconds": 4.0, "data_wait_seconds": 0.0, "logging_seconds": 0.25},
    {"step": 3, "wall_seconds": 10.0, "compile_seconds": 6.0, "data_wait_seconds": 0.0},
    {"step": 4, "wall_seconds": 4.0, "data_wait_seconds": 0.0, "checkpoint_seconds": 2.0},
    {"step": 5, "wall_seconds": 9.0, "compile_seconds": 5.0, "data_wait_seconds": 0.0, "evaluation_seconds": 1.5},
]
EVENTS = [
    {"kind": "begin", "time": 110.0, "opened": 100.0, "alive_until": None, "step": 0, "redone_seconds": 0},
    {"kind": "save", "time": 140.0, "seconds": 2.0, "final": False},
    {"kind": "begin", "time": 160.0, "opened": 155.0, "alive_until": 142.0, "step": 3, "redone_seconds": 4.0},
    {"kind": "save", "time": 177.0, "seconds": 3.0, "final": True},
    {"kind": "stop", "time": 178.0, "step": 5},
    {"kind": "begin", "time": 200.0, "opened": 190.0, "alive_until": 174.0, "step": 5, "redone_seconds": 0},
    {"kind": "probe", "time": 212.0, "seconds": 1.0, "final": True},
    {"kind": "save", "time": 214.0, "seconds": 2.0, "final": True},
    {"kind": "end", "time": 214.0, "step": 6},
]


def test_seconds_by_kind():
    found = goodput(RECORDS, EVENTS)
    assert found == {
        "step": 51 - 26 - 1.5 - 2 - 1.5 - 0.25,
        "compile": 15 + 6 + 5,
        "data_wait": 1.5,
        "checkpoint": 2 + 3 + 2,
        "evaluation": 1.5 + 1,
        "logging": 0.25,
        "start": 10,
        "restart": (160 - 142 + 4) + (200 - 178),
    }
    assert productive_fraction(found) == pytest.approx(19.75 / sum(found.values()))


def test_events_of_an_earlier_version_and_no_events():
    old = [{"kind": "begin", "time": 5.0, "redone_seconds": 0}, {"kind": "begin", "time": 9.0, "redone_seconds": 2.0}]
    assert goodput(RECORDS, old)["restart"] == 6
    assert goodput(RECORDS, [])["restart"] == goodput(RECORDS, [])["start"] == 0
    assert productive_fraction(goodput([], [])) is None


def test_total():
    assert total([goodput(RECORDS, EVENTS)] * 2)["compile"] == 52

"""How the random key of a stage follows from the seed, in runs of today and of before."""

from types import SimpleNamespace

import numpy as np
import pytest

from lclm_jax.train.checkpoints import restore
from lclm_jax.train.core.initial_state import initial_state

OPTIMIZER = SimpleNamespace(init=lambda params: {})


def key(seed, stage=0):
    return tuple(np.asarray(initial_state({}, OPTIMIZER, seed, stage).rng).tolist())


def test_no_two_stages_of_two_seeds_share_a_key():
    keys = {key(seed, stage) for seed in range(3) for stage in range(3)}
    assert len(keys) == 9
    assert key(2) == key(2, 0), "the first stage has the key of its seed, as ever"


@pytest.mark.parametrize(("stored", "rule"), [({"stage_keys": "folded"}, "folded"), ({}, None), (None, "folded")])
def test_a_stage_follows_the_rule_of_the_stage_before(make_config, monkeypatch, stored, rule):
    one = {"lr": {"adapter": 1e-2}, "steps": 2, "mixture": {"cpt": 1}, "batch_rows": 8}
    config = make_config(stages={"first": one, "second": one})

    class Stored:
        def __init__(self, folder):
            assert folder.parent.name == "first"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def latest(self):
            return None if stored is None else 2

        def meta(self, step):
            return stored

    monkeypatch.setattr(restore, "Checkpoints", Stored)
    assert restore._stage_keys(SimpleNamespace(config=config, stage="second")) == rule
    assert restore._stage_keys(SimpleNamespace(config=config, stage="first")) == "folded"

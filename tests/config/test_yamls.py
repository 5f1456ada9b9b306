"""Every shipped YAML is alive: it loads, its model has shapes, and no two say the same."""

import math
from pathlib import Path

import jax
import pytest

from lclm_jax.config import config_hash, load_config
from lclm_jax.model.lclm import abstract_params
from lclm_jax.train.optimizer import make_optimizer

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_builds(path):
    config = load_config(path)
    params = abstract_params(config.model)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) > 0
    for stage in config.stages.values():
        assert make_optimizer(config.train.optimizer, stage, params).names


def test_no_two_are_alike():
    trees = {path: load_config(path).model_copy(update={"name": "", "run_dir": ""}) for path in CONFIGS}
    assert len({config_hash(tree) for tree in trees.values()}) == len(CONFIGS)

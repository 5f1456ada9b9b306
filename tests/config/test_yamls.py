"""Every shipped YAML is alive: it loads, its model has shapes, its name says what it is, and no two say the same."""

import math
import re
from pathlib import Path

import jax
import pytest

from lclm_jax.ablate.variants import expand, variant_config, variant_hash
from lclm_jax.config import config_hash, load_config, load_study
from lclm_jax.model.lclm import abstract_params
from lclm_jax.train.core.optimizer import make_optimizer

ROOT = Path(__file__).parents[2] / "configs"
STUDIES = sorted(path for path in ROOT.glob("ablate/**/*.yaml") if "base" not in path.stem)
RUNS = sorted({*ROOT.rglob("*.yaml")} - {*STUDIES, *ROOT.glob("base/*"), *ROOT.glob("clusters/*")})
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
SEARCH = sorted((ROOT / "search").glob("*.yaml"))
BATCH_TOKENS = 256 * 16384
TOWERS = {"0.6b": 1024, "4b": 2560, "8b": 4096}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_loads_and_builds(path):
    config = load_config(path)
    params = abstract_params(config.model)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) > 0
    for stage in config.stages.values():
        assert make_optimizer(config.train.optimizer, stage, params).names


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_variant_of_a_study_is_its_own(path):
    study = load_study(path)
    names = [variant.name for variant in expand(study)]
    assert all(variant_config(study, variant, study.seeds[0]).stages for variant in expand(study))
    assert len({variant_hash(study, variant) for variant in expand(study)}) == len(names)
    for published in study.published:
        assert set(published.values) <= set(names), "a published value of a variant that is not in the study"


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_variant_of_a_study_builds(path):
    study = load_study(path)
    for variant in expand(study):
        config = variant_config(study, variant, study.seeds[0])
        params = abstract_params(config.model)
        for stage in config.stages.values():
            assert make_optimizer(config.train.optimizer, stage, params).names


def test_no_two_are_alike():
    trees = {path: load_config(path).model_copy(update={"name": "", "run_dir": ""}) for path in RUNS}
    assert len({config_hash(tree) for tree in trees.values()}) == len(RUNS)


@pytest.mark.parametrize("path", EXPERIMENTS + SEARCH, ids=lambda path: path.stem)
def test_a_name_says_what_the_model_is(path):
    model = load_config(path).model
    towers = r"(?P<encoder>[\d.]+b)-(?P<decoder>\d+b)-cs(?P<ratio>\d+)-" if path in EXPERIMENTS else ""
    shape = r"(?P<pooling>\w+)-w(?P<window>\d+)-(?P<mask>\w+)-(?P<adapter>\w+)-O(?P<overlap>\d+)"
    named = re.fullmatch(towers + shape, path.stem).groupdict()
    assert (model.pooling, model.mask, model.adapter.type) == (named["pooling"], named["mask"], named["adapter"])
    assert (model.window, model.overlap) == (int(named["window"]), int(named["overlap"]))
    assert model.ratio == int(named.get("ratio", 16))
    assert model.encoder.hidden_size == TOWERS[named.get("encoder", "0.6b")]
    assert model.decoder.hidden_size == TOWERS[named.get("decoder", "0.6b")]


def test_the_published_axes_are_covered():
    models = [load_config(path).model for path in EXPERIMENTS]
    assert {model.ratio for model in models} == {4, 8, 16}
    for ratio in (4, 8, 16):  # the table "mean/concat at 4x, 8x, 16x"
        assert {"mean", "concat"} <= {model.pooling for model in models if model.ratio == ratio}
    assert len(EXPERIMENTS) == 20
    assert len(SEARCH) == 19


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_recipe_is_the_published_one(path):
    config = load_config(path)
    stages = list(config.stages.values())
    assert [(s.lr.adapter, s.lr.encoder, s.lr.decoder) for s in stages] == [
        (1e-3, None, None),
        (6e-5, 6e-5, None),
        (6e-5, 6e-5, 1e-5),
        (3e-5, 3e-5, 3e-5),
    ]
    assert [s.warmup for s in stages] == [250, 500, 1000, 500]
    assert [s.peak_lr("memory_rows") for s in stages] == [6e-5, 6e-5, 1e-5, 3e-5]
    for name, stage in config.stages.items():
        pack = config.pack(name)
        assert stage.batch_rows * pack.row_length == BATCH_TOKENS
        assert (stage.min_lr, stage.schedule) == (1e-6, "cosine")
        decay = stage.weight_decay
        assert (decay.adapter, decay.encoder, decay.decoder) == (0.01, 0.01, 0.0)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_steps_follow_from_350_billion_tokens(path):
    config = load_config(path)
    assert sum(stage.tokens for stage in config.stages.values()) == 185e9
    steps = sum(stage.steps for stage in config.stages.values())
    assert abs(steps - 185e9 / BATCH_TOKENS) < len(config.stages)
    # What a row's windows can hold, over the run, must be enough for the encoder's share of the 350B.
    pack, model = config.data.pack, config.model
    beside = (2 if model.mask == "bidirectional" else 1) * model.overlap
    beside += model.window // model.ratio if model.pooling == "eos" else 0
    places = pack.encoder_rows * (pack.encoder_row_length // (model.window + beside)) * model.window
    assert steps * 256 * places >= 165e9


@pytest.mark.parametrize("path", SEARCH, ids=lambda path: path.stem)
def test_the_search_starts_from_random_weights(path):
    config = load_config(path)
    assert not config.init.given
    (stage,) = config.stages.values()
    assert (stage.steps, stage.warmup, stage.min_lr) == (10000, 500, 3e-5)
    assert (stage.lr.adapter, stage.lr.encoder, stage.lr.decoder) == (1e-3, 3e-4, 3e-4)
    assert 0 < 1 - 38e9 / (stage.steps * BATCH_TOKENS) < 0.1  # the paper's 38B leave out padding

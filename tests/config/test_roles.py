"""Roles of keys: what a run's result depends on may not change within it, everything else may."""

import json
from pathlib import Path

import pytest
from tests.config.one_run import VALUES

from lclm_jax.config import Config, describe_keys, override, parse_config, result_values, role_of
from lclm_jax.errors import LclmError
from lclm_jax.ops.run_folder import claim_run
from lclm_jax.train.checkpoints.provenance import ChangedConfigError, check_provenance, provenance

LEAVES = {one.name: one for one in describe_keys(Config) if one.default}
NAMES = {"corpus.collections.NAME": "corpus.collections.web", "stages.NAME": "stages.base"}
CHANGES = {
    "name": "second",
    "run_dir": None,  # the test's own folder
    "corpus.collections.NAME.paths": ["elsewhere/*.jsonl"],
    "data.copy_shards": True,
    "model.encoder.preset": "qwen3_0p6b",
    "model.decoder.preset": "qwen3_0p6b",
    "model.remat": "full",
    **{
        f"model.remat_tensors.{tower}.{where}": ["q"]
        for tower in ("encoder", "decoder")
        for where in ("device", "host")
    },
    "model.attention": "chunked",
    "model.pooling_backend": "auto",
    "train.trackers": ["wandb"],
    "train.profile_steps": "1-2",
    "train.stop.cloud_notice": "gce",
    "mesh.fsdp": 2,
    "environment": {"TF_CPP_MIN_LOG_LEVEL": "1"},
    "stages.NAME.tokens": 10**6,
}
FREE = [name for name, leaf in LEAVES.items() if leaf.role != "result"]


@pytest.fixture
def config(tmp_path):
    return parse_config(VALUES | {"run_dir": str(tmp_path)})


def changed(config, name):
    """``config`` with another value of the key ``name`` (of the first stage or collection)."""
    real, value = name, config
    for pattern, instance in NAMES.items():
        real = real.replace(pattern, instance)
    for part in real.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    value = CHANGES[name] or value if name in CHANGES else another(value, name)
    values = config.model_dump(mode="json")
    if real.startswith("model.remat_tensors"):  # of use where not everything is saved
        values = override(values, "model.remat", "full")
    return parse_config(override(values, real, value))


def another(value, name):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value or 1
    number = name.endswith(("_bytes", "every_minutes", "keep_every", "every_steps"))
    return 7 if number else "elsewhere"


def test_every_key_has_a_role():
    assert [leaf.name for leaf in LEAVES.values() if leaf.role is None] == []


def test_roles_are_found_by_name():
    assert role_of(Config, "stages.base.mixture.web") == "result"
    assert role_of(Config, "stages.base.microbatches") == "layout"
    assert role_of(Config, "corpus.collections.web.paths") == "place"
    assert role_of(Config, "environment.XLA_FLAGS") == "layout"
    assert role_of(Config, "train.optimizer") is None and role_of(Config, "no.such.key") is None


@pytest.mark.parametrize("name", FREE)
def test_keys_that_no_result_depends_on_may_change(config, name):
    claim_run(config)
    stored = json.loads(json.dumps({stage: provenance(config, stage) for stage in config.stages}))
    other = changed(config, name)
    assert name == "run_dir" or other != config
    claim_run(other)
    for stage in config.stages:
        assert check_provenance(other, stage, stored[stage]) == []


@pytest.mark.parametrize(
    "change",
    ["seed=1", "model.ratio=8", "model.compute_dtype=float32", "stages.base.steps=9", "train.z_loss=0.1",
     "train.optimizer.b2=0.9", "data.sources.web.max_tokens=30", "corpus.held_out_share=0.1"],
)  # fmt: skip
def test_keys_that_a_result_depends_on_may_not(config, change):
    name, _, value = change.partition("=")
    other = parse_config(
        override(config.model_dump(mode="json"), name, json.loads(value) if value[0] in "0123456789" else value)
    )
    claim_run(config)
    with pytest.raises(LclmError, match=rf"{name}: .* -> .*set them back.*new folder.*--force"):
        claim_run(other)
    with pytest.raises(ChangedConfigError, match=rf"{name}: .* -> .*--force"):
        check_provenance(other, "base", provenance(config, "base"))
    with pytest.raises(ChangedConfigError, match=r"more was trained with|more started from base"):
        check_provenance(other, "more", provenance(config, "more"))
    claim_run(other, force=True)


@pytest.mark.parametrize("stage", ["base", "more"])
def test_checkpoints_of_before_roles_resume(config, stage):
    """They hold all keys but a few, and hashes of them."""
    stored = json.loads(Path(__file__).with_name("provenance_before_roles.json").read_text())
    assert stored["base"]["inputs"]["model"]["loss_chunk"] == 8, "a key that has another role now"
    assert check_provenance(config, stage, stored[stage]) == []
    other = parse_config(override(config.model_dump(mode="json"), "model.loss_chunk", 16))
    assert check_provenance(other, "base", stored["base"]) == []


def test_result_values_are_those_of_the_dump(config):
    """In its order, too: they are stored in the row index."""
    source = config.data.sources["web"]
    dumped = source.model_dump(mode="json")
    del dumped["category"], dumped["spans"]["ratio"]  # they came later, so they are left out at their defaults
    assert list(result_values(source).items()) == list(dumped.items())
    collection = config.corpus.collections["web"]
    later = {
        "paths": True,
        "max_row_bytes": True,
        "message": True,
        "columns": {"system", "language"},
        **dict.fromkeys(("where", "train_on", "compress_reasoning"), True),
    }  # their defaults change nothing
    assert result_values(collection) == collection.model_dump(mode="json", exclude=later)

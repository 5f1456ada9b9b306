import importlib.util
from pathlib import Path

import pytest

from lclm_jax.plan import cache
from lclm_jax.plan.plans import Outcome
from lclm_jax.plan.topologies import parse_topology

spec = importlib.util.spec_from_file_location("plan_conftest", Path(__file__).with_name("conftest.py"))
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)

NODE = parse_topology("h100:8")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"stages__all__steps": 99}, True),
        ({"stages__all__lr": {"adapter": 2e-3, "encoder": 1e-3, "decoder": 1e-3}}, True),
        ({"stages__all__lr": {"adapter": 1e-3}}, False),
        ({"stages__all__batch_rows": 16}, False),
        ({"model__remat": "none"}, False),
        ({"mesh": {"tensor": 2}}, False),
    ],
    ids=str,
)
def test_a_key_changes_with_the_program_alone(config, change, same):
    key = cache.key_of(config, "all", NODE)
    assert (cache.key_of(conftest.small_config(**change), "all", NODE) == key) is same


def test_a_key_changes_with_topology_and_flags(config, monkeypatch):
    key = cache.key_of(config, "all", NODE)
    assert cache.key_of(config, "all", parse_topology("h100:2x4")) != key
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=true")
    assert cache.key_of(config, "all", NODE) != key


def test_results_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.load("k") is None
    cache.store("k", Outcome(None, "too large"))
    assert cache.load("k") == {"program": None, "why_not": "too large"}
    (cache.cache_folder() / "k.json").write_text("{")
    assert cache.load("k") is None

"""The YAML of a suite: defaults, roles of systems, and mistakes by key, value and fix."""

from pathlib import Path

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.suite.spec import SystemConfig, load_suite
from lclm_jax.suite.store import key_of

ROOT = Path(__file__).parents[2]
SUITE = """
tasks:
  needles: {kind: ruler, lengths: [1024], names: [niah_single_1], samples: 2}
systems:
  without: {kind: lclm, model: m, context: none}
  raw: {kind: lclm, model: m}
  lclm: {kind: lclm, model: m, context: memory}
"""


def load(tmp_path, text):
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return load_suite(path)


def test_roles_and_names(tmp_path):
    suite = load(tmp_path, SUITE)
    assert (suite.name, suite.out) == ("small", "runs/suite/small")
    assert (suite.reference_name, suite.no_context_name) == ("raw", "without")
    assert suite.tasks["needles"].seed == 42


def test_records_of_systems_without_newer_keys_are_found_again():
    """Digest of the settings before ``cache_bits`` was there."""
    old = SystemConfig(kind="kvpress", model="m", press="snapkv", ratio=4)
    assert "cache_bits" not in old.settings("python")
    assert key_of(old.settings("python")) == key_of(
        {
            "kind": "kvpress",
            "model": "m",
            "context": "raw",
            "ratio": 4.0,
            "press": "snapkv",
            "query_aware": False,
            "url": None,
            "dtype": None,
        }
    )
    assert old.model_copy(update={"cache_bits": 4}).settings()["cache_bits"] == 4


def test_a_quantized_cache_is_no_reference(tmp_path):
    suite = load(tmp_path, SUITE.replace("  raw:", "  quantized: {kind: kvpress, model: m, cache_bits: 4}\n  raw:"))
    assert suite.reference_name == "raw"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: ruler", "kind: rule", "tasks.needles.kind: Input should be 'ruler'"),
        ("samples: 2", "sample: 2", "unknown key tasks.needles.sample; did you mean 'samples'"),
        ("lengths: [1024], ", "", "tasks.needles: a ruler task needs lengths"),
        ("context: memory", "press: snapkv", "systems.lclm: press=snapkv belongs to a kvpress system"),
        ("context: memory", "cache_bits: 4", "systems.lclm: cache_bits=4 belongs to a kvpress system"),
        ("context: memory", "ratio: 4", "systems.lclm: ratio=4 has no meaning without a press or a truncation"),
        ("context: memory", "url: http://x", "systems.lclm: url is the address of an openai system"),
        ("kind: ruler, lengths: [1024]", "kind: gsm8k", "tasks.needles: gsm8k needs data"),
        ("  raw:", "  a/b:", "systems: 'a/b' is no usable name"),
        ("systems:", "reference: rwa\nsystems:", "reference='rwa' is no system; did you mean 'raw'"),
        ("systems:", "generate: false\nlikelihood: false\nsystems:", "nothing would be measured"),
        ("systems:", "judge: {kind: lclm, model: m}\nsystems:", "judge is an endpoint"),
    ],
)
def test_mistakes(tmp_path, old, new, message):
    assert old in SUITE
    with pytest.raises(LclmError, match=message):
        load(tmp_path, SUITE.replace(old, new))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_load(path):
    suite = load_suite(path)
    assert suite.reference == "raw"
    assert suite.no_context_name == "no context"
    presses = {one.press for one in suite.systems.values()} - {None}
    assert len(presses) >= 9


def test_files_that_hold_no_suite(tmp_path):
    with pytest.raises(LclmError, match=r"cannot read .*none.yaml: No such file"):
        load_suite(tmp_path / "none.yaml")
    with pytest.raises(LclmError, match="holds no keys"):
        load(tmp_path, "- a\n")
    with pytest.raises(LclmError, match="is not YAML"):
        load(tmp_path, "a: [")

"""The script for a first accelerator: its rules, its reading of profiles, its rows; a part that fails ends nothing."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.contact import rules
from benchmarks.contact.profiles import costs_of, kind_of
from benchmarks.contact.step import configuration, drawn_batch
from jax.profiler import ProfileData

from lclm_jax.bench.torch_step import windows_of

ROOT = Path(__file__).parents[2]


def profile(name):
    text = (ROOT / "tests" / "fixtures" / "profiles" / f"{name}.textproto").read_text()
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))


def script():
    spec = importlib.util.spec_from_file_location("first_contact", ROOT / "benchmarks" / "first_contact.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_recorded_profile_of_a_cpu_gives_own_times():
    """The products lie inside a loop, whose event must not count them again."""
    sort, products, *rest = costs_of(profile("cpu"))
    assert sort.kind == "sorts, gathers and scatters" and sort.share > 0.6
    assert (products.kind, products.largest) == ("products", "ynn_fusion")
    assert products.share == pytest.approx(0.263, abs=0.001)
    assert {cost.kind: cost.share for cost in rest}["other"] < 0.02, "what the loop itself takes"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpu", {"products": 10, "collectives": 4, "attention": 3, "copies": 2, "elementwise work and reductions": 1}),
        ("tpu", {"products": 6, "attention": 5, "copies": 4, "elementwise work and reductions": 3, "other": 1}),
    ],
)
def test_devices_are_read_by_stream_and_by_operation(name, expected):
    found = costs_of(profile(name))
    assert {cost.kind: round(cost.seconds * 1e6, 6) for cost in found} == expected
    assert [cost.kind for cost in found] == sorted(expected, key=expected.get, reverse=True)


def test_kinds_of_names():
    names = {"input_reduce_fusion": "elementwise", "sort": "sorts", "pool_mean_forward": "pooling", "while": "other"}
    assert all(kind_of(name).startswith(kind) for name, kind in names.items())


def test_a_rule_for_a_chip_comes_before_the_one_for_all():
    line = {"what": "forward", "case": "splash", "share_of_product": 0.36}
    [on_v6e], [elsewhere] = rules.judge([line], "TPU v6 lite"), rules.judge([line], "NVIDIA H100 80GB HBM3")
    assert (on_v6e.word, elsewhere.word) == ("pass", "rewrite")


def test_report_says_what_to_do_and_what_failed():
    lines = [
        {"what": "machine", "device": "NVIDIA H200", "platform": "gpu"},
        {"what": "correct", "case": "pallas_gpu", "right": False},
        {"what": "tiling", "case": "forward", "speed_of_default": 0.8},
        {"what": "step", "case": "one row", "mfu": 0.5, "seconds_per_step": 1.0},
        {"what": "costs", "case": "one row", "products_and_attention": 0.8, "largest": ["products 60%", "copies 9%"]},
        {"what": "pytorch", "case": "one row", "seconds_per_step": 2.5},
        {"what": "part", "case": "kernels", "failed": "stopped after 70 s"},
    ]
    text = rules.report(rules.compared(lines))
    assert "3 pass, 1 tune, 1 rewrite" in text and "products 60%; copies 9%" in text
    assert "| pytorch | one row | times_faster | 2.5 | **pass** |" in text
    assert text.index("**rewrite**") < text.index("**tune**") < text.index("**pass**")
    assert "| part | kernels | stopped after 70 s |" in text


def test_the_page_shows_the_rules():
    page = (ROOT / "docs" / "how-to" / "first-contact.md").read_text()
    assert rules.rules_table() in page, "write it anew from benchmarks.contact.rules.rules_table()"


def test_a_part_that_fails_is_a_line(tmp_path, monkeypatch):
    first = script()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    [line] = first.run_part("machine", 5, tmp_path, small=True)
    assert line["what"] == "part" and "ended with 1" in line["failed"]
    monkeypatch.setattr(sys, "argv", ["first_contact.py", "--out", str(tmp_path), "--parts", "step"])
    first.main()
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2


def test_drawn_rows_keep_to_the_layout():
    """Every placeholder has a slot of its own that pools real tokens of its own span's windows."""
    config = configuration(small=True, devices=1)
    batch, ratio = drawn_batch(config, 2, 0), config.model.ratio
    assert len(np.unique(batch.decoder_segments)) > 3
    for row in range(2):
        slots = batch.latent_index[row][batch.latent_index[row] >= 0]
        pooled = np.flatnonzero(batch.pool_weights[row].reshape(-1).reshape(-1, ratio).any(1))
        assert len(set(slots)) == len(slots) and set(slots) <= set(pooled)
        windows = windows_of(batch, row, ratio)
        assert set(windows.slots) == set(pooled) and windows.lengths.max() <= config.model.window
        segments = batch.decoder_segments[row]
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            assert (batch.decoder_positions[row][here] == np.arange(here.sum())).all()

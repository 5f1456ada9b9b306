import csv
import json
import math
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import yaml

from lclm_jax.ablate import effects
from lclm_jax.ablate.published import compare_published
from lclm_jax.ablate.results import MEASURES
from lclm_jax.ablate.summary import summarise
from lclm_jax.ablate.variants import Variant
from lclm_jax.config.study import Measurement, PublishedConfig, StudyConfig
from lclm_jax.errors import LclmError
from lclm_jax.report.document import Cell, Folded, Section, Table, Text, html, markdown
from lclm_jax.report.study import figures, sections
from lclm_jax.report.study.plots import pareto_front
from lclm_jax.report.study.write import write_report


@pytest.fixture(scope="module")
def written(wide, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return write_report(*wide, out), out


def test_files_hold_the_study(wide, written):
    study, variants, results = wide
    _, out = written
    assert StudyConfig(**yaml.safe_load((out / "study.yaml").read_text())) == study
    assert list(yaml.safe_load((out / "variants.yaml").read_text())) == [one.name for one in variants]
    stored = json.loads((out / "results.json").read_text())
    assert stored["measures"]["held_out_loss"]["variants"]["baseline"]["by_seed"]["2"] == pytest.approx(
        results["baseline"].measures["held_out_loss"][2]
    )
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 * 4
    assert float(rows[4]["train_loss"]) == pytest.approx(results[variants[1].name].measures["train_loss"][0])
    assert (rows[4]["pooling"], rows[4]["seed"]) == ("concat", "0")


def test_page_needs_no_other_file(written):
    page = (written[1] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(list((written[1] / "plots").iterdir())) == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "ARC-Encoder-style" in page


def test_both_say_the_same_of_every_variant(wide, written):
    summary, out = written
    text = (out / "report.md").read_text()
    assert len(summary.order) == len(wide[1]) == 14
    for name in summary.order:
        assert f"| `{name}` |" in text
    for plot in (out / "plots").iterdir():
        assert f"](plots/{plot.name})" in text


def test_diverged_and_missing_are_named_and_never_averaged(written):
    summary, out = written
    text = (out / "report.md").read_text()
    assert summary.diverged == {"pooling=none": [1]}
    assert "`pooling=none` diverged in 1 of 4 seeds (1)" in text
    assert "Not run yet: `CompLLM`." in text
    for one in summary.measures:  # its accuracy is finite, and means nothing
        assert "pooling=none" not in one.intervals
        assert math.isnan(one.values["pooling=none"][1])
    assert summary.order[-2:] == ["pooling=none", "CompLLM"]


def test_answer_names_every_comparison_once(grid, written):
    summary, _ = written
    sentence = sections.answer(summary)
    for name, compared in summary.primary.comparisons.items():
        assert sentence.count(f"`{name}`") == 1
        parts = sentence.split(";")
        part = next(part for part in parts if f"`{name}`" in part)
        assert {"better": "better than", "worse": "worse than", "tie": "a tie with"}[compared.verdict] in part
    assert sections.answer(summarise(*grid)).startswith("By held-out loss, better than the baseline: `overlap=8` (−0.2")


def test_without_a_baseline_nothing_is_compared(grid):
    study, variants, results = grid
    left = {name: one for name, one in results.items() if name != "baseline"}
    summary = summarise(study, variants, left)
    assert sections.answer(summary) == "The baseline has not run yet, so nothing can be compared."
    assert (summary.sizing, summary.primary.comparisons) == (None, {})
    assert sections.write(summary, {}, {})
    nan = [math.nan, *results["baseline"].measures["held_out_loss"][1:]]
    broken = replace(results["baseline"], measures={**results["baseline"].measures, "held_out_loss": nan})
    summary = summarise(study, variants, {**results, "baseline": broken})
    assert sections.answer(summary) == "The baseline diverged, so nothing can be compared with it."


def test_refuses_what_it_can_not_report(grid):
    study, variants, results = grid
    with pytest.raises(LclmError, match="no variant of mask-overlap has run"):
        summarise(study, variants, {})
    with pytest.raises(LclmError, match="primary=repetition_loss"):
        less = {
            name: replace(one, measures={"train_loss": one.measures["train_loss"]}) for name, one in results.items()
        }
        summarise(study.model_copy(update={"primary": "repetition_loss"}), variants, less)
    other = replace(results["both"], seeds=(5, 6, 7, 8))
    with pytest.raises(LclmError, match=r"both ran with seeds \[5, 6, 7, 8\], baseline with"):
        summarise(study, variants, {**results, "both": other})


def test_effects_of_crossed_factors_by_hand():
    levels = [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")]
    variants = [Variant(mask + overlap, {}, {"mask": mask, "overlap": overlap}) for mask, overlap in levels]
    values = {"ax": {0: 1.0, 1: 2.0}, "bx": {0: 1.5, 1: 2.7}, "ay": {0: 3.0, 1: 4.2}, "by": {0: 3.1, 1: 4.6}}
    mask, overlap = effects.main_effects(variants, values, "lower", 0.95)
    # bx - ax: 0.5 0.7; by - ay: 0.1 0.4; means within seeds 0.3 0.55.
    assert (mask.factor, mask.level, mask.against, mask.pairs) == ("mask", "b", "a", 2)
    assert mask.comparison.difference == pytest.approx((0.3 + 0.55) / 2)
    # ay - ax: 2.0 2.2; by - bx: 1.6 1.9; means 1.8 2.05.
    assert overlap.comparison.difference == pytest.approx((1.8 + 2.05) / 2)
    (both,) = effects.interactions(variants, values, "lower", 0.95)
    # (by - ay) - (bx - ax): -0.4 -0.3.
    assert both.comparison.difference == pytest.approx(-0.35)
    assert (both.factor, both.level) == ("mask × overlap", "b × y")
    del values["by"]  # it diverged: one pair is left, and no interaction
    mask, _ = effects.main_effects(variants, values, "lower", 0.95)
    assert (mask.pairs, mask.comparison.difference) == (1, pytest.approx(0.6))
    assert effects.interactions(variants, values, "lower", 0.95) == []


def test_agreement_with_published_directions():
    values = {
        "base": {0: 1.0, 1: 2.0, 2: 3.0},
        "less": {0: 0.9, 1: 1.91, 2: 2.9},
        "more": {0: 1.1, 1: 2.11, 2: 3.1},
        "same": {0: 1.1, 1: 1.9, 2: 3.0},
        "broken": {0: 1.1, 1: math.nan, 2: 3.0},
    }
    names = [*values, "later"]
    published = dict.fromkeys(("less", "more", "same", "broken", "later", "unknown"), 50.0)
    config = PublishedConfig(source="s", measure="accuracy", better="higher", values={"base": 40.0, **published})
    rows = {row.variant: row for row in compare_published(config, names, values, {}, "lower", 0.95)}
    assert {name: row.agreement for name, row in rows.items()} == {
        "base": None, "less": "agrees", "more": "disagrees", "same": "cannot be told", "broken": "diverged",
        "later": "not run", "unknown": "not in this study",
    }  # fmt: skip
    assert (rows["less"].published, rows["more"].ours) == ("better", "worse")
    # Without the baseline among the published values, the first of them is the reference for both.
    config = PublishedConfig(source="s", measure="loss", values={"more": 2.0, "less": 1.0})
    reference, less = compare_published(config, names, values, {}, "lower", 0.95)
    assert (reference.published, less.published, less.ours) == ("reference", "better", "better")


def test_agreement_that_does_not_outlast_the_correction(wide):
    summary = summarise(*wide)
    (rows,) = summary.published
    compared = summary.primary.comparisons
    lost = {row.variant for row in rows if row.lost}
    assert lost == {one.variant for one in rows if one.ours and compared[one.variant].holm_verdict != one.ours}
    assert "window=16" in lost
    assert "| `window=16` | 1.183 | worse | worse | agrees, not after Holm |" in markdown(
        "", sections.write(summary, {}, {})
    )


def test_pareto_front():
    points = [(1, 5.0), (2, 5.0), (2, 4.0), (3, 4.5), (4, 1.0)]
    assert pareto_front(points, lower=True) == [(1, 5.0), (2, 4.0), (4, 1.0)]
    assert pareto_front(points, lower=False) == [(1, 5.0)]


def test_every_variant_has_a_panel(wide):
    panels = figures.panels(summarise(*wide), [one.name for one in wide[1]])
    assert list(panels) == ["pooling", "mask", "window", "adapter.hidden_multiplier", "further variants"]
    assert all(names[0] == "baseline" and len(names) <= 6 for names in panels.values())
    assert {name for names in panels.values() for name in names} == {one.name for one in wide[1]}


def test_panels_of_a_grid_are_few(grid):
    panels = figures.panels(summarise(*grid), [one.name for one in grid[1]])
    assert panels == {
        "one factor changed": ["baseline", "mask=bidirectional", "overlap=8"],
        "2 factors changed": ["baseline", "both"],
    }


def test_small_findings_are_called_small(grid):
    study, variants, results = grid
    assert "Detected, but below" not in markdown("", sections.write(summarise(study, variants, results), {}, {}))
    wide = study.model_copy(update={"smallest_effect": 0.15})
    text = markdown("", sections.write(summarise(wide, variants, results), {}, {}))
    assert "Detected, but below 0.15, the smallest effect that matters here: `mask=bidirectional`." in text


def test_no_best_among_equals(grid):
    study, variants, results = grid
    flat = {
        name: replace(one, measures={**one.measures, "needle_accuracy": [0.0] * 4}) for name, one in results.items()
    }
    found = {one.name: one for one in summarise(study, variants, flat).measures}
    assert (found["needle_accuracy"].best, found["held_out_loss"].best) == (None, "overlap=8")


def test_a_study_names_the_measures_that_it_shows(grid):
    study, variants, results = grid
    chosen = study.model_copy(update={"measurements": ("needle_accuracy",)})
    names = [one.name for one in summarise(chosen, variants, results).measures]
    assert names == ["held_out_loss", "needle_accuracy"]
    assert set(get_args(Measurement)) == set(MEASURES)


def test_sizing_says_what_a_tie_means(grid):
    study, variants, results = grid
    sizing = summarise(study, variants, results).sizing
    spread = np.std(results["baseline"].measures["held_out_loss"], ddof=1)
    assert sizing.spread == pytest.approx(spread)
    pilot, base = (np.array(results[name].measures["held_out_loss"]) for name in ("overlap=8", "baseline"))
    # The upper 80 % limit of a spread over 4 seeds: the square root of 3 over the chi-square quantile 1.005.
    assert sizing.bound == pytest.approx(np.std(pilot - base, ddof=1) * np.sqrt(3 / 1.005), rel=1e-3)
    assert max(sizing.detectable_after, sizing.detectable_before) < study.smallest_effect
    strict = study.model_copy(update={"smallest_effect": 1e-3})
    texts = [
        b.text
        for s in sections.write(summarise(strict, variants, results), {}, {})
        for b in s.blocks
        if "text" in dir(b)
    ]
    assert any("there may still be a difference that large" in text for text in texts)


def test_text_is_escaped(tmp_path):
    blocks = [Text("`a<b` **c** & d"), Table(["x|y"], [[Cell("1|2")]]), Folded("f", "<script>")]
    page = html("<t>", [Section("<s>", blocks)], tmp_path)
    assert "<code>a&lt;b</code> <strong>c</strong> &amp; d" in page
    assert "<script>" not in page and "<title>&lt;t&gt;</title>" in page
    assert "| 1\\|2 |" in markdown("t", [Section("s", blocks)])

import dataclasses
import json

import pytest
from rich.console import Console

from lclm_jax.plan.expected.expected import Expected
from lclm_jax.plan.plans import as_json
from lclm_jax.report.plan_tables import document, lines, search_table, stages_table, totals

EXPECTED = Expected(
    products_s=2.0,
    kernels_s=1.0,
    elementwise_s=0.5,
    rows_s=0.2,
    optimizer_s=0.1,
    network_s=0.2,
    segments_per_row=2.0,
    visible_share=0.5,
    visible_flops=1e12,
    compiled=False,
    assumed_from="v5p",
)


def shown(table):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_time_and_money_follow_from_the_step(plan_of):
    plan = plan_of(step=2.0, steps=43200)
    assert plan.mfu == pytest.approx(0.5)
    assert plan.tokens_per_s == 500
    assert plan.days == 1.0
    assert plan.chip_hours == 96
    found = totals([plan, plan], price=2.0)
    assert {name: found[name] for name in ("days", "chip_hours", "price")} == {
        "days": 2.0,
        "chip_hours": 192,
        "price": 384,
    }
    assert found["expected_days"] is None  # nothing was expected of these


def test_what_is_expected_has_its_own_time_and_money(plan_of):
    plan = dataclasses.replace(plan_of(step=2.0, steps=43200), expected=EXPECTED)
    assert EXPECTED.step_s == 4.0
    assert plan.expected_mfu == pytest.approx(0.25)
    assert plan.expected_visible_mfu == pytest.approx(0.125)
    assert plan.expected_tokens_per_s == 250
    assert totals([plan, plan], price=2.0)["expected_price"] == 768
    text = shown(stages_table([plan], 2.0))
    for words in ("expected s: step", "4.000, by formula", "expected MFU", "25.0 %", "384", "those of v5p"):
        assert words in text
    assert json.loads(json.dumps(as_json(plan)))["expected"]["days"] == 2.0


def test_a_stage_that_does_not_fit_leaves_the_total_open(plan_of):
    assert set(totals([plan_of(), plan_of(fits=False)], 1.0).values()) == {None}
    assert dict(lines(plan_of(fits=False), None))["fits"] == "no, 16.00 GB a chip are too little"
    assert not plan_of(peak=17e9).fits


def test_the_table_says_what_was_counted(plan_of):
    text = shown(stages_table([plan_of(), plan_of(fits=False)], 3.0))
    for words in ("yes, 1.00 of 16.00 GB", "wire, fsdp", "50.0 %", "bound by compute", "288"):
        assert words in text


def test_the_table_of_a_search_keeps_the_order(plan_of):
    text = shown(search_table([plan_of(step=1.0), plan_of(peak=9e10)]))
    assert "fsdp=4" in text
    assert text.index("1,000") < text.index("90.00")


def test_json_has_what_follows_from_a_plan(plan_of):
    for plan in (plan_of(), plan_of(fits=False)):
        written = json.loads(json.dumps(as_json(plan)))
        assert (written["fits"], written["mfu"], written["days"]) == (plan.fits, plan.mfu, plan.days)
        assert written["choice"]["mesh"] == plan.choice.mesh


def test_the_document_names_versions_and_total(plan_of):
    plan = dataclasses.replace(plan_of(), stage="one")
    made = json.loads(json.dumps(document([plan], None)))
    assert made["plans"][0]["stage"] == "one"
    assert made["total"]["price"] is None
    assert set(made["versions"]) == {"jax", "jaxlib"}

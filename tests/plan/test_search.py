import dataclasses
from types import SimpleNamespace

import pytest
from tests.plan.conftest import small_config

from lclm_jax.errors import LclmError
from lclm_jax.plan import search
from lclm_jax.plan.analytic_cost import analytic_cost, mesh_sizes
from lclm_jax.plan.expected.forecast import forecast
from lclm_jax.plan.memory import estimate
from lclm_jax.plan.search import TIE, candidates, compiled_best, meshes, ranked
from lclm_jax.plan.topologies import parse_topology

NODE = parse_topology("h100:8")


@pytest.mark.parametrize("name", ["h100:8", "h100:2x4", "v5p:2x2x2"])
def test_meshes_fill_the_chips_and_slices_lie_along_replica(config, name):
    topology = parse_topology(name)
    found = meshes(config, topology)
    assert found
    for mesh in found:
        assert mesh.replica * mesh.fsdp * mesh.context * mesh.tensor == topology.num_devices
        assert mesh.replica % topology.slices == 0


def test_candidates_keep_the_batch_and_divide(config):
    for candidate in candidates(config, "all", NODE):
        stage, sizes = candidate.stages["all"], mesh_sizes(candidate, NODE)
        assert stage.batch_rows == config.stages["all"].batch_rows
        assert stage.batch_rows % (stage.microbatches * sizes["replica"] * sizes["fsdp"]) == 0


def test_every_rows_and_remat_is_tried_before_any_a_second_time(config):
    found = candidates(config, "all", NODE)
    choices = [(candidate.stages["all"].batch_rows, per_chip(candidate), candidate.model.remat) for candidate in found]
    different = len(set(choices))
    assert len(set(choices[:different])) == different < len(choices)


def test_the_first_candidate_is_expected_to_be_the_fastest_but_for_ties(config):
    found = candidates(config, "all", NODE)
    seconds = [forecast(candidate, "all", NODE).step_s for candidate in found]
    assert seconds[0] <= min(seconds) * (1 + 2 * TIE)


def test_of_equal_guesses_the_smaller_comes_first(config):
    first = candidates(config, "all", NODE)[0]
    sizes = mesh_sizes(first, NODE)
    copied = first.model_copy(update={"mesh": first.mesh.model_copy(update={"replica": 2, "fsdp": sizes["fsdp"] // 2})})
    assert estimate(first, "all", sizes).peak < estimate(copied, "all", mesh_sizes(copied, NODE)).peak


def test_products_are_kept_where_there_is_room(config):
    kept = {(one.model.remat, one.model.remat_tensors.decoder.device) for one in candidates(config, "all", NODE)}
    assert ("full", ("q", "k", "v", "o")) in kept
    assert {products for remat, products in kept if remat == "dots"} == {()}


def per_chip(candidate):
    stage, sizes = candidate.stages["all"], mesh_sizes(candidate, NODE)
    return stage.batch_rows // stage.microbatches // (sizes["replica"] * sizes["fsdp"])


def test_what_cannot_fit_is_not_tried():
    large = small_config(data__pack={"row_length": 2**30, "encoder_rows": 2, "encoder_row_length": 64})
    with pytest.raises(LclmError, match="nothing fits"):
        candidates(large, "all", NODE)


@pytest.mark.parametrize(("less", "more"), [("full", "attention"), ("attention", "dots"), ("dots", "none")])
def test_what_is_saved_takes_memory_and_spares_time(less, more):
    sizes = {"replica": 1, "fsdp": 8, "context": 1, "tensor": 1}
    first, second = (small_config(model__remat=remat) for remat in (less, more))
    assert estimate(first, "all", sizes).peak < estimate(second, "all", sizes).peak
    if less != "attention":  # saving the products still runs attention again
        assert analytic_cost(first, "all", NODE).step_s > analytic_cost(second, "all", NODE).step_s


def test_a_plan_leads_back_to_its_configuration(config):
    found = candidates(config, "all", NODE)
    plan = search.plan_stage(found[3], "all", NODE, compiled=False)
    assert search.config_of(plan, found, NODE) is found[3]


def test_plans_that_do_not_fit_come_last(plan_of):
    small, slow, large = plan_of(peak=1e9, step=1.0), plan_of(peak=1e9, step=2.0), plan_of(peak=1e15, step=0.1)
    assert ranked([large, slow, small]) == [small, slow, large]


def test_only_what_could_be_faster_is_compiled(config, plan_of, monkeypatch):
    found = candidates(config, "all", NODE)
    told = []
    monkeypatch.setattr(search, "plan_stage", lambda *_, **__: plan_of())
    times = {id(one): 1.0 + 0.06 * number for number, one in enumerate(found)}
    monkeypatch.setattr(search, "forecast", lambda one, *_: SimpleNamespace(step_s=times[id(one)]))
    plans = list(search.search(found, "all", NODE, told.append))
    assert len(plans) == len(told) == 2 < len(found)  # 1.00 and 1.06 s, within a tenth
    assert "by formula" in told[0]


def test_what_is_expected_decides_the_rank(plan_of):
    slow, fast = (
        dataclasses.replace(plan_of(step=step), expected=SimpleNamespace(step_s=expected))
        for step, expected in ((1.0, 5.0), (2.0, 4.0))
    )
    assert ranked([slow, fast]) == [fast, slow]


def test_what_has_no_room_does_not_count_as_compiled(plan_of):
    tried = iter([plan_of(fits=False), plan_of(step=3.0), plan_of(step=1.0), plan_of(step=0.1)])
    taken = compiled_best(tried, 2)
    assert [plan.program and plan.program.step_s for plan in taken] == [1.0, 3.0, None]
    assert next(tried).program.step_s == 0.1

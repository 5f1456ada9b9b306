"""The compiler's own estimates, read from the text of a program."""

import pytest
from tests.plan.conftest import small_config

from lclm_jax.parallel.hardware import CHIPS
from lclm_jax.plan.expected.compiled import CLOCKS, Operation, cycles, operations, refined
from lclm_jax.plan.expected.forecast import forecast
from lclm_jax.plan.expected.rates import EXPOSED
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.topologies import parse_topology

NAME = 'op_name="jit(step)/transpose(jvp(decoder))/Decoder/while/body/checkpoint/layers/mlp/mlp/mul"'
TEXT = """HloModule jit_step

%product (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%added (b: f32[8,8]) -> f32[8,8] {
  %b = f32[8,8]{1,0} parameter(0)
  ROOT %sum = f32[8,8]{1,0} add(%b, %b)
}

%looked_up (t: f32[8,8], i: s32[4,1]) -> f32[4,8] {
  %t = f32[8,8]{1,0} parameter(0)
  %i = s32[4,1]{1,0} parameter(1)
  ROOT %rows = f32[4,8]{1,0} gather(%t, %i), offset_dims={1}
}

%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %s = (s32[], f32[8,8]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%s), index=1
  %y = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"100"}
  %z = f32[8,8]{1,0} fusion(%y), kind=kLoop, calls=%added, metadata={NAME}, backend_config={"estimated_cycles":"7"}
  ROOT %out = (s32[], f32[8,8]) tuple(%n, %z)
}

%condition (s: (s32[], f32[8,8])) -> pred[] {
  %s = (s32[], f32[8,8]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[8,8], i: s32[4,1], s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %x = f32[8,8]{1,0} parameter(0)
  %i = s32[4,1]{1,0} parameter(1)
  %s = (s32[], f32[8,8]) parameter(2)
  %rows = f32[4,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%looked_up, backend_config={"estimated_cycles":"1000"}
  %copy = f32[8,8]{1,0} copy(%x), backend_config={"estimated_cycles":"50"}
  %begun = f32[8,8]{1,0} copy-start(%x), backend_config={"estimated_cycles":"1000"}
  ROOT %loop = (s32[], f32[8,8]) while(%s), condition=%condition, body=%body, config={"known_trip_count":{"n":"36"}}
}
""".replace("NAME", NAME)


def test_estimates_are_summed_with_the_trips_of_loops():
    assert cycles(parse(TEXT)) == {"products": 36 * 100, "elementwise": 36 * 7 + 50}


def test_operations_are_named_by_their_place_in_the_model():
    array = "f32[8, 8]"
    assert operations(parse(TEXT), CHIPS["v5p"]) == (
        Operation("y", "products", array, 36, pytest.approx(3600 / 1.75e9)),
        Operation(
            "decoder/Decoder/layers/mlp/mlp/mul (backward)", "elementwise", array, 36, pytest.approx(252 / 1.75e9)
        ),
        Operation("copy", "copy", array, 1, pytest.approx(50 / 1.75e9)),
    )
    assert operations(parse(TEXT), CHIPS["h100"]) == ()


def test_what_the_compiler_estimates_takes_the_place_of_the_formula():
    topology = parse_topology("v5p:2x2x2")
    formula = forecast(small_config(), "all", topology)
    found = refined(formula, parse(TEXT), 0.4, topology.chip)
    assert found.compiled
    assert found.products_s == pytest.approx(3600 / 1.75e9)
    assert found.network_s == pytest.approx(EXPOSED * 0.4)
    assert (found.kernels_s, found.rows_s) == (formula.kernels_s, formula.rows_s)
    assert refined(formula, parse(TEXT.replace("estimated_cycles", "other")), 0.4, topology.chip) == formula
    assert refined(formula, parse(TEXT), 0.4, CHIPS["h100"]) == formula


def test_every_tpu_has_a_clock():
    assert set(CLOCKS) == {name for name, chip in CHIPS.items() if chip.dimensions}

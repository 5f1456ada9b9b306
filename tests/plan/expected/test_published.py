"""The forecast beside steps that others published."""

import json

from click.testing import CliRunner

from lclm_jax.cli.plan import plan
from lclm_jax.plan.expected.published import STEPS, calibrate, parameters_of, shape_of
from lclm_jax.plan.topologies import parse_topology


def test_published_steps_are_met_within_15_percent():
    found = calibrate()
    assert all(abs(one.error) <= 0.15 for one in found), [(one.step.name, one.error) for one in found]
    assert len(found) >= 5
    assert len({parse_topology(step.topology).chip.name for step in STEPS}) >= 3
    assert sum(step.held_out for step in STEPS) >= 2


def test_models_have_the_published_sizes():
    sizes = {step.model: parameters_of(shape_of(step)) / 1e9 for step in STEPS}
    wanted = {"llama2-7b": 6.74, "llama2-70b": 68.98, "mistral-7b": 7.24, "llama3.1-8b": 8.03, "llama3.1-70b": 70.55}
    assert {name: round(size, 2) for name, size in sizes.items()} == wanted | {"llama3.1-405b": 405.85}


def test_the_command_needs_no_configuration():
    found = CliRunner().invoke(plan, ["--calibrate", "--json", "-"])
    assert found.exit_code == 0, found.output
    steps = json.loads(found.stdout)["steps"]
    assert [step["name"] for step in steps] == [step.name for step in STEPS]
    for step in steps:
        assert step["error"] == step["expected_seconds"] / step["published_seconds"] - 1
        assert {"topology", "rows_per_device", "row_length", "remat", "flags", "held_out", "source"} <= set(step)
        assert abs(sum(step["parts"].values()) - step["expected_seconds"]) < 1e-9
    shown = CliRunner().invoke(plan, ["--calibrate"])
    assert STEPS[0].name in shown.stdout


def test_without_it_configuration_and_topology_are_asked_for():
    for arguments in ([], ["any.yaml"], ["--topology", "v5p:4x4x4"]):
        found = CliRunner().invoke(plan, arguments)
        assert found.exit_code == 2
        assert "give CONFIG and --topology, or --calibrate alone" in found.output

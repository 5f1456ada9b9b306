"""The formulas beside compiled programs: the same step on 8 CPU devices, its products and collectives counted."""

import json

import jax
import pytest
from click.testing import CliRunner
from tests.plan.conftest import small_config

from lclm_jax.cli.plan import plan, with_rows
from lclm_jax.config import dump_config
from lclm_jax.model.flops import step_flops
from lclm_jax.plan import compiled, flags, plans, topologies
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.memory import estimate
from lclm_jax.plan.parameters import parameter_counts
from lclm_jax.plan.program_cost import count
from lclm_jax.plan.topologies import parse_topology
from lclm_jax.report.plan_tables import stages_table


@pytest.fixture
def on_cpu(monkeypatch):
    """Compile for the eight CPU devices of the tests, called a node of GPUs."""
    for module in (plans, topologies):
        monkeypatch.setattr(module, "can_compile", lambda topology: True)
    monkeypatch.setattr(compiled, "compile_only_devices", lambda topology: jax.devices()[: topology.num_devices])
    return parse_topology("h100:8")


@pytest.mark.parametrize(
    ("stage", "remat"),
    [pytest.param("all", "none", marks=pytest.mark.slow), ("all", "full"), ("adapter", "full")],
    ids=lambda value: value,
)
def test_formula_and_program_execute_the_same_flops(on_cpu, stage, remat):
    config = small_config(model__remat=remat)
    step = compiled.compile_step(compiled.lower_step(config, stage, on_cpu))
    cost = count(parse(step.text), 8)
    formula = step_flops(config.model, config.stages[stage], config.pack(stage), "reference").executed / 8
    assert cost.flops == pytest.approx(formula, rel=0.05)
    assert step.peak_bytes >= step.argument_bytes > 0


@pytest.mark.slow
def test_a_teacher_is_counted(on_cpu):
    stages = small_config().model_dump(mode="json")["stages"]
    stages["all"]["distill"] = {"weight": 0.5}
    config, plain = small_config(model__remat="none", stages=stages), small_config(model__remat="none")
    cost = count(parse(compiled.compile_step(compiled.lower_step(config, "all", on_cpu)).text), 8)
    arguments = ((one.model, one.stages["all"], one.pack("all"), "reference") for one in (config, plain))
    with_teacher, without = (step_flops(*one) for one in arguments)
    assert cost.flops == pytest.approx(with_teacher.executed / 8, rel=0.05)
    assert with_teacher.model - without.model == with_teacher.teacher.forward > without.decoder.forward
    mesh = {"replica": 1, "fsdp": 1, "context": 1, "tensor": 1}
    held, before = (estimate(one, "all", mesh) for one in (config, plain))
    copy = 4 * parameter_counts(config.model)["decoder"]
    assert copy < held.arguments - before.arguments < copy + 8 * 4 * 4 * config.twin_length("all")  # and int32 arrays


def test_the_command_prints_a_table_and_writes_json(on_cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(small_config()))
    arguments = [
        str(path),
        "--topology",
        "h100:8",
        "--stage",
        "all",
        "--price",
        "2",
        "--json",
        str(tmp_path / "p.json"),
    ]
    first = CliRunner().invoke(plan, arguments)
    assert first.exit_code == 0, first.output
    assert "MFU at most" in first.output
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["plans"][0]["fits"]
    assert written["total"]["price"] == pytest.approx(2 * written["total"]["chip_hours"])
    sets = [flags.FlagSet(name, {f"xla_{name}": True}, "") for name in ("cpu_enable_fast_math", "of_nobody")]
    monkeypatch.setattr(flags, "flag_sets", lambda chip: sets)
    with_flags = CliRunner().invoke(plan, [*arguments, "--flags"])
    assert with_flags.exit_code == 0, with_flags.output
    assert "+ of_nobody" in with_flags.stdout and "of_nobody: refused: " in with_flags.stderr
    base, taken, refused = json.loads((tmp_path / "p.json").read_text())["flags"]
    assert base["plan"]["program"] == written["plans"][0]["program"]  # from the cache
    assert taken["refused"] is None
    assert taken["plan"]["program"]["collectives"] > 0 and taken["plan"]["program"]["compile_s"] > 0
    assert refused["plan"] is None and "xla_of_nobody" in refused["refused"]
    monkeypatch.setattr(plans, "compile_step", None)  # the second time nothing is compiled
    assert CliRunner().invoke(plan, arguments).exit_code == 0
    assert CliRunner().invoke(plan, [*arguments, "--flags"]).exit_code == 1


def test_flags_need_a_compiler(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(small_config()))
    found = CliRunner().invoke(plan, [str(path), "--topology", "v5p:2x2x2", "--flags", "--formula"])
    assert found.exit_code == 2 and "leave --formula out" in found.stderr


def test_the_command_compiles_nothing_by_formula(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(small_config()))
    arguments = [str(path), "--formula", "--topology", "v5p:2x2x2", "--price", "2", "--json", "-"]
    found = CliRunner().invoke(plan, arguments)
    assert found.exit_code == 0, found.output
    written = json.loads(found.stdout)
    assert [stage["by_formula"] for stage in written["plans"]] == [True, True]
    for stage in written["plans"]:
        expected = stage["expected"]
        assert expected["step_s"] > 0 and expected["segments_per_row"] >= 1
        assert expected["tokens_per_s"] == pytest.approx(stage["tokens_per_step"] / expected["step_s"])
    assert written["total"]["expected_price"] == pytest.approx(2 * written["total"]["expected_chip_hours"])
    assert "lclm-jax[tpu]" in found.stderr


@pytest.mark.parametrize("wrong", [("--rows-per-chip", "0"), ("--compiles", "0"), ("--price", "-1")])
def test_numbers_that_make_no_sense_are_refused(wrong):
    found = CliRunner().invoke(plan, ["any.yaml", "--topology", "v5e:2x2", *wrong])
    assert found.exit_code == 2
    assert f"Invalid value for '{wrong[0]}'" in found.output


def test_stages_that_train_the_same_parts_share_a_program(config):
    rates = config.stages["all"].lr.model_copy(update={"adapter": 3e-5, "decoder": 2e-5})
    later = config.stages["all"].model_copy(update={"lr": rates, "steps": 7, "warmup_steps": 3})
    both = config.model_copy(update={"stages": config.stages | {"later": later}})
    plain = [compiled._with_plain_numbers(both, name).stages[name] for name in ("all", "later", "adapter")]
    assert plain[0] == plain[1] != plain[2]


def test_rows_per_chip_keep_the_tokens(config):
    changed = with_rows(config, 4).stages["all"]
    assert (changed.batch_rows, changed.steps, changed.microbatches) == (4, 40, 1)


def test_without_a_compiler_for_gpus_the_plan_is_by_formula(config, monkeypatch):
    monkeypatch.setattr(plans, "can_compile", lambda topology: False)
    plan = plans.plan_stage(config, "all", parse_topology("h100:2x4"))
    assert plan.by_formula
    assert plan.fits
    assert plan.program.executed_flops == plan.formula_flops
    assert set(plan.program.wire_bytes) == {"fsdp"}
    assert "BY FORMULA" in stages_table([plan], None).title


def test_a_compiled_plan_is_not_by_formula(on_cpu, monkeypatch):
    monkeypatch.setattr(plans.cache, "load", lambda key: plans.CompiledStep("", 0.0, 0.0, 0.0, 1.0, "too large"))
    plan = plans.plan_stage(small_config(), "all", on_cpu)
    assert (plan.fits, plan.by_formula, plan.why_not) == (False, False, "too large")

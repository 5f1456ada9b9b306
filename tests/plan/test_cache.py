import jax
import pytest
from tests.plan.conftest import small_config

from lclm_jax.plan import cache, compiled
from lclm_jax.plan.cache import CompiledStep
from lclm_jax.plan.compiled import lower_step
from lclm_jax.plan.topologies import parse_topology


@pytest.fixture(scope="module", autouse=True)
def devices_of_the_tests():
    """Programs for the CPU devices of the tests, called nodes of GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compile_only_devices", lambda topology: jax.devices()[: topology.num_devices])
        yield


def lowered(**changes):
    return lower_step(small_config(**changes), "all", parse_topology("h100:8"))


@pytest.fixture(scope="module")
def step():
    return lowered()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"stages__all__steps": 99, "stages__all__min_lr": 7e-4}, True),
        ({"stages__all__lr": {"adapter": 1e-3}, "mesh": {"tensor": 2}}, False),
    ],
    ids=str,
)
def test_a_key_changes_with_the_program_alone(step, change, same):
    assert (cache.key_of(lowered(**change)) == cache.key_of(step)) is same


def test_a_key_changes_with_devices_topology_and_flags(step, monkeypatch):
    key, wiring = cache.key_of(step), step.wiring
    turned = wiring._replace(devices=wiring.devices[::-1])
    assert cache.key_of(step._replace(wiring=turned)) != key
    assert cache.key_of(step._replace(wiring=wiring._replace(topology=parse_topology("h100:2x4")))) != key
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=true")
    assert cache.key_of(step) != key


def test_a_program_does_not_know_the_files_it_was_written_in(step):
    assert ".py" not in step.text()
    assert "decoder" in step.text()  # which attention is causal is read from the scopes


def test_results_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.load("k") is None
    result = CompiledStep("HloModule", 1.0, 2.0, 3.0, 4.0)
    cache.store("k", result)
    assert cache.load("k") == result
    (path,) = cache.cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    assert cache.load("k") is None


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.store("k", CompiledStep("HloModule", 1.0, 2.0, 3.0, 4.0))
    assert "the compiled plan is not kept: cannot write" in caplog.text and cache.load("k") is None

"""The entry point of a Ray job, with a stand-in for Ray whose actors are threads; `make test-ray` has a cluster."""

import base64
import importlib.util
import json
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "ray" / "ray_job.py"
STAND_IN = """
import json, os, pathlib, sys
folder, rank, restarts = pathlib.Path(sys.argv[2]), os.environ["JAX_PROCESS_ID"], int(os.environ["LCLM_RESTARTS"])
(folder / f"call-{restarts}-{rank}").write_text(json.dumps([sys.argv[1:], os.environ["JAX_COORDINATOR_ADDRESS"]]))
sys.exit(json.loads((folder / "plan").read_text())[restarts][int(rank)])
"""


class Lost(Exception):
    """What Ray raises for an actor whose host is gone."""


class Actor:
    """Calls methods in threads of its own."""

    def __init__(self, made):
        self._made, self._pool = made, ThreadPoolExecutor(2)

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self._pool.submit(getattr(self._made, name), *given))


def remote(**options):
    def decorate(kind):
        return SimpleNamespace(options=lambda **more: SimpleNamespace(remote=lambda: Actor(kind())), kind=kind)

    return decorate


@pytest.fixture
def job(monkeypatch, tmp_path):
    """``job(plan, *arguments)``: exit status of a job whose processes end as ``plan`` says, and its module."""
    fake = SimpleNamespace(
        remote=remote,
        init=lambda **options: None,
        get=lambda future: future.result(),
        wait=lambda futures, timeout: (list(wait(futures, timeout, FIRST_COMPLETED).done), []),
        kill=lambda actor: None,
        exceptions=SimpleNamespace(RayError=Lost, RayActorError=Lost),
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"),
    )
    group = SimpleNamespace(wait=lambda seconds: True)
    made = SimpleNamespace(placement_group=lambda bundles, strategy: group, remove_placement_group=lambda group: None)
    strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group, number: number)
    for name, module in (
        ("ray", fake),
        ("ray.util", fake.util),
        ("ray.util.placement_group", made),
        ("ray.util.scheduling_strategies", strategies),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "lclm_jax").mkdir()
    (tmp_path / "lclm_jax" / "__init__.py").touch()
    (tmp_path / "lclm_jax" / "__main__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = importlib.util.spec_from_file_location("ray_job", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.signal, "signal", lambda *given: None)

    def run(plan, *arguments, options=()):
        (tmp_path / "plan").write_text(json.dumps(plan))
        encoded = base64.b64encode(json.dumps([str(tmp_path), *arguments]).encode()).decode()
        monkeypatch.setattr(sys, "argv", ["ray_job.py", "--workers", "2", *options, encoded])
        return module.main()

    run.module = module
    return run


def calls(folder):
    return sorted(path.name for path in folder.glob("call-*"))


def test_status_75_starts_all_processes_again(job, tmp_path):
    assert job([[75, 75], [0, 0]], "a b", "$HOME") == 0
    assert calls(tmp_path) == ["call-0-0", "call-0-1", "call-1-0", "call-1-1"]
    started = [json.loads((tmp_path / f"call-0-{rank}").read_text()) for rank in (0, 1)]
    assert started[0] == started[1], "the same coordinator and arguments"
    assert started[0][0] == ["train", str(tmp_path), "a b", "$HOME"] and started[0][1].startswith("10.0.0.1:")


@pytest.mark.parametrize(("plan", "status"), [([[1, 75]], 1), ([[75, 2]], 2), ([[0, 0]], 0)])
def test_an_error_or_the_end_is_the_status_of_the_job(job, tmp_path, plan, status):
    assert job(plan) == status and len(calls(tmp_path)) == 2


def test_restarts_are_limited(job, tmp_path):
    assert job([[75, 75]] * 3, options=["--max-restarts", "1"]) == 75 and len(calls(tmp_path)) == 4


def test_a_lost_host_or_a_crash_is_a_reason_to_start_again(job):
    assert job.module._outcome([None, 75]) == job.module._outcome([-9, 75]) == job.module._outcome([139, 0]) == 75
    assert job.module._outcome([1, None]) == 1

"""`lclm doctor` as a command: a table, JSON, the exit status; and before training."""

import json

import pytest
from click.testing import CliRunner
from tests.doctor.test_machine import DEMO, EIGHT_ROWS

from lclm_jax.cli.checks import preflight, wants_preflight
from lclm_jax.cli.main import cli
from lclm_jax.config import load_config
from lclm_jax.doctor import collectives, devices, versions
from lclm_jax.errors import LclmError

SETTINGS = [word for setting in EIGHT_ROWS for word in ("--set", setting)]


def run(*arguments):
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Matrices and messages that take no time."""
    measure, time_collectives = devices.measure_devices, collectives.measure_collectives
    monkeypatch.setattr(devices, "measure_devices", lambda: measure(32, 1))
    monkeypatch.setattr(collectives, "measure_collectives", lambda mesh: time_collectives(mesh, 64))


def test_a_sound_machine(tmp_path):
    done = run(
        DEMO, *SETTINGS, "--set", f"run_dir={tmp_path / 'run'}", "--json", tmp_path / "found.json", "--devices", "8"
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    checks = [one["check"] for one in found["findings"]]
    assert found["ok"] and checks == [
        "versions", "flags", "shared memory", "open files", "disk", "clocks", "storage", "devices", "mesh", "compute",
        "all-reduce fsdp", "all-gather fsdp",
    ]  # fmt: skip
    assert all(check in done.output for check in checks) and "0 failures" in done.output
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_what_failed_is_in_the_exit_status(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(DEMO, "--devices", "16", "--set", f"run_dir={tmp_path / 'file' / 'run'}")
    assert done.exit_code == 1
    assert "8 devices, and 16 are expected" in done.output and "cannot write in run_dir=" in done.output


def test_jax_is_not_started_with_versions_that_it_refuses(monkeypatch):
    monkeypatch.setattr(versions, "installed_versions", lambda: {"jax": "0.12.0", "jaxlib": "0.9.0"})
    done = run()
    assert done.exit_code == 1 and "does not go with" in done.output and "compute" not in done.output


def test_options_need_a_configuration():
    assert run("--set", "seed=1").exit_code == 2


def test_a_run_that_fails_its_checks_does_not_begin(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(devices, "expected_devices", lambda config, number: 9)
    with pytest.raises(LclmError, match=r"checks before the run failed \(devices\); LCLM_PREFLIGHT=0"):
        preflight(load_config(DEMO, (*EIGHT_ROWS, f"run_dir={tmp_path / 'run'}")))
    assert "8 devices, and 9 are expected" in capsys.readouterr().err
    for value, wanted in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("LCLM_PREFLIGHT", value)
        assert wants_preflight() == wanted

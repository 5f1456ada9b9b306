"""``lclm status`` on a run's files written by hand: live, silent, stopped, finished."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from lclm_jax.cli.main import cli
from lclm_jax.ops.prometheus import prometheus_text
from lclm_jax.ops.status import run_status

BEGIN = {"kind": "begin", "time": 1000.0, "step": 0, "redone_steps": 0, "redone_seconds": 0}


def test_a_live_run(run, step):
    events = [BEGIN, {"kind": "save_failed", "time": 1003.0, "message": "disk full"}, {"kind": "spike", "time": 1004.0}]
    config = run([step(0, 3.0, compile_seconds=1.0), step(1, None, nonfinite=1.0), step(2, 1.0)], events, saved=[2])
    result = run_status(config, now=1010.0)
    one, two = result["stages"].values()
    assert (result["stage"], result["state"], result["silent_seconds"]) == ("one", "running", 6.0)
    assert (one["done_steps"], one["recent"]["loss_nats"], one["nonfinite_steps"]) == (3, 2.0, 1)
    assert (one["failed_saves"], one["spikes"], one["last_failure"]) == (1, 1, "disk full")
    pace = (1 + 2 + 2) / 3
    assert one["eta_seconds"] == pytest.approx(7 * pace) and not one["eta_is_rough"]
    assert two["eta_seconds"] == pytest.approx(10 * 2 * pace) and two["eta_is_rough"]  # twice the rows
    assert result["eta_seconds"] == pytest.approx(27 * pace)


def test_silent_stopped_and_finished(run, step):
    config = run([step(0)], [BEGIN])
    assert run_status(config, now=1000.0 + 3600)["state"] == "silent"
    config = run([step(0)], [BEGIN, {"kind": "stop", "time": 1001.0}])
    assert run_status(config, now=1000.0 + 3600)["state"] == "stopped"
    again = BEGIN | {"time": 2000.0, "alive_until": 1001.0, "redone_steps": 3, "redone_seconds": 6.0}
    run([step(9)], [BEGIN, again], saved=[10])
    result = run_status(run([step(9)], [BEGIN, again], saved=[20], stage="two"), now=5000.0)
    assert (result["state"], result["eta_seconds"]) == ("finished", 0.0)
    assert result["stages"]["one"]["restarts"] == 1 and result["stages"]["one"]["redone_steps"] == 3


def test_a_run_that_has_not_begun(run):
    config = run([], [])
    result = run_status(config, now=5000.0)
    assert (result["state"], result["eta_seconds"], result["goodput"]) == ("not begun", None, None)


def test_the_command_writes_json_and_needs_no_jax(run, step, tmp_path):
    run([step(0), step(1)], [BEGIN])
    code = (
        f"import sys; sys.argv = ['lclm', 'status', {str(tmp_path)!r}]\n"
        "from lclm_jax.cli.main import cli\n"
        "cli.main(standalone_mode=False)\n"
        "assert not {'jax', 'grain', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2/10" in done.stdout, done.stderr
    out = tmp_path / "status.json"
    result = CliRunner().invoke(cli, ["status", str(tmp_path), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["stages"]["one"]["done_steps"] == 2


def test_several_runs_are_one_table_and_a_file_for_prometheus(run, step, tmp_path, monkeypatch):
    run([step(0), step(1, mfu=0.4)], [BEGIN, {"kind": "save_failed", "time": 1003.0, "message": "full"}])
    file, out = tmp_path / "lclm.prom", tmp_path / "status.json"
    arguments = ["status", str(tmp_path), str(tmp_path), "--prometheus", str(file), "--json", str(out)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("watched") == 2 and result.output.count("2/10") == 2
    assert [one["name"] for one in json.loads(out.read_text())] == ["watched", "watched"]
    metrics = file.read_text().splitlines()
    labels = f'folder="{tmp_path}",run="watched"'
    assert f'lclm_steps_done{{{labels},stage="one"}} 2' in metrics
    assert f'lclm_mfu{{{labels},stage="one"}} 0.4' in metrics
    assert f'lclm_failed_saves{{{labels},stage="one"}} 1' in metrics
    assert f'lclm_stage_state{{{labels},stage="two",state="not begun"}} 1' in metrics
    assert len(metrics) == len(set(metrics)), "no series twice"
    assert not any(line.startswith("lclm_mfu") and 'stage="two"' in line for line in metrics), "there is none yet"
    names = {line.split("{")[0] for line in metrics if not line.startswith("#")}
    assert names == {line.split()[2] for line in metrics if line.startswith("# TYPE")}


def test_names_of_runs_are_escaped(run, step):
    status = run_status(run([step(0)], [BEGIN]), now=1001.0) | {"name": 'a "b"\\'}
    assert 'lclm_steps{folder="x",run="a \\"b\\"\\\\",stage="one"} 10' in prometheus_text({"x": status})


def test_the_status_is_shown_again_and_again(run, step, tmp_path, monkeypatch):
    run([step(0)], [BEGIN])
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    result = CliRunner().invoke(cli, ["status", str(tmp_path), "--watch", "5"])
    assert waits == [5.0, 5.0] and result.output.count("1/10") == 2

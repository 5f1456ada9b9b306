import http.server
import os
import signal
import threading
import time

import pytest

from lclm_jax.config.train import StopConfig
from lclm_jax.errors import LclmError
from lclm_jax.train.supervise import preemption as stopping
from lclm_jax.train.supervise.preemption import job_deadline, maintenance_notice, stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_acts(number):
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    with stop_requests(StopConfig()) as stop:
        assert stop.reason is None
        signal.raise_signal(number)
        assert stop.reason == number.name
        assert all(signal.getsignal(one) is handler for one, handler in before.items())
    assert all(signal.getsignal(one) is handler for one, handler in before.items())


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_the_end_of_the_job_asks_in_time(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    with stop_requests(StopConfig(before_end_seconds=300)) as stop:
        wait_for(lambda: stop.reason is not None)
        assert "the job ends in" in stop.reason
    with stop_requests(StopConfig(before_end_seconds=10)) as stop:
        time.sleep(0.05)
        assert stop.reason is None


def test_deadlines_of_schedulers(tmp_path, monkeypatch):
    for name in ("LCLM_DEADLINE", "SLURM_JOB_END_TIME", "FLUX_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert job_deadline() is None
    monkeypatch.setenv("LCLM_DEADLINE", "1700000000")
    assert job_deadline() == 1.7e9
    monkeypatch.setenv("LCLM_DEADLINE", "soon")
    with pytest.raises(LclmError, match="LCLM_DEADLINE='soon' is not a time; set it to seconds"):
        job_deadline()
    monkeypatch.delenv("LCLM_DEADLINE")
    monkeypatch.setenv("FLUX_JOB_ID", "f1")
    flux = tmp_path / "flux"
    flux.write_text("#!/bin/sh\necho 120\n")
    flux.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert job_deadline() == pytest.approx(time.time() + 120, abs=5)


@pytest.mark.parametrize("value", ["soon", "inf", "-5", "2026-11-28", "²"])
def test_a_deadline_that_is_no_time_is_refused_at_once(monkeypatch, value):
    monkeypatch.setenv("LCLM_DEADLINE", value)
    with pytest.raises(LclmError, match=r"LCLM_DEADLINE='.*' is not a time"), stop_requests(StopConfig()):
        pytest.fail("training would begin")


def test_a_deadline_may_have_fractions(monkeypatch):
    monkeypatch.setenv("LCLM_DEADLINE", " 1700000000.5 ")
    assert job_deadline() == 1700000000.5


@pytest.mark.parametrize("value", ["Unknown", "NONE", "0", "-1", "1000", "nan", "2030-01-01T00:00:00"])
def test_an_odd_end_of_a_slurm_job_is_not_known(monkeypatch, caplog, value):
    monkeypatch.delenv("LCLM_DEADLINE", raising=False)
    monkeypatch.setenv("SLURM_JOB_END_TIME", value)
    assert job_deadline() is None
    assert f"SLURM_JOB_END_TIME='{value}' is not a time to come: the end of the job is not known" in caplog.text


@pytest.mark.parametrize("script", [None, "sleep 5", "echo soon", "exit 1"])
def test_a_flux_that_gives_no_answer(tmp_path, monkeypatch, caplog, script):
    for name in ("LCLM_DEADLINE", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLUX_JOB_ID", "f1")
    monkeypatch.setattr(stopping, "_ANSWER_SECONDS", 0.2)
    if script is not None:
        (tmp_path / "flux").write_text(f"#!/bin/sh\nexec {script}\n" if "sleep" in script else f"#!/bin/sh\n{script}\n")
        (tmp_path / "flux").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert job_deadline() is None
    assert "flux job timeleft gave no time" in caplog.text


def test_an_error_of_the_watch_is_said_once_and_does_not_end_it(monkeypatch, caplog):
    for name in ("LCLM_DEADLINE", "SLURM_JOB_END_TIME", "FLUX_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stopping, "_POLL_SECONDS", 0.01)
    looks = []

    def notice(host):
        looks.append(host)
        if len(looks) < 4:
            raise RuntimeError("what nobody foresaw")
        return "preempted: TRUE"

    monkeypatch.setattr(stopping, "maintenance_notice", notice)
    with stop_requests(StopConfig(cloud_notice="gce")) as stop:
        wait_for(lambda: stop.reason == "preempted: TRUE")
    assert caplog.text.count("RuntimeError: what nobody foresaw; watching on") == 1


def test_a_metadata_server_that_speaks_nonsense_is_no_news():
    assert maintenance_notice("no host at all") is None


def test_a_cloud_notice_asks(monkeypatch):
    said = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said[self.path.rsplit("/", 1)[1]].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        monkeypatch.setattr(stopping, "_POLL_SECONDS", 0.02)
        assert maintenance_notice(host) is None
        with stop_requests(StopConfig(cloud_notice="gce")) as stop:
            time.sleep(0.1)
            assert stop.reason is None
            said["preempted"] = "TRUE"
            wait_for(lambda: stop.reason == "preempted: TRUE")
        server.shutdown()
    assert maintenance_notice(host) is None  # the server is gone: no news is no reason to stop

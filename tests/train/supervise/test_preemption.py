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

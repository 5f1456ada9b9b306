"""launch/ray.sh on a real Ray cluster of this machine, a raylet for each host: preempted runs are started again.

Run by `make test-ray`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# Read when Ray is imported: on a busy machine its daemons take longer to start than it allows for.
os.environ |= {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600", "RAY_agent_register_timeout_ms": "600000"}

import pytest
from ray._private import services
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "slurm" / "tiny.yaml"
STEPS = 60
STAND_IN = '''
"""Stands for `lclm`: notes how it was started, and does what the file of its number says."""
import json, os, pathlib, sys, time
folder, rank = pathlib.Path(sys.argv[2]), os.environ["JAX_PROCESS_ID"]
known = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "LCLM_RESTARTS", "LCLM_PREFLIGHT")
call = {"arguments": sys.argv[1:], "pid": os.getpid(), **{name: os.environ.get(name) for name in known}}
with (folder / f"calls-{rank}").open("a") as file:
    file.write(json.dumps(call) + "\\n")
plan = json.loads((folder / "plan").read_text())
time.sleep(plan["seconds"][int(os.environ["LCLM_RESTARTS"])])
sys.exit(plan["statuses"][int(os.environ["LCLM_RESTARTS"])][int(rank)])
'''


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, what, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what()}"
        time.sleep(0.3)


_get_node = services.get_node


def _wait_for_node(address, node):
    """Information about a raylet; Ray itself waits for it for 30 s."""
    end = time.monotonic() + 300
    while True:
        try:
            return _get_node(address, node)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


services.get_node = _wait_for_node

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def node_settings():
    """Little memory, and known ports: on a busy machine a raylet would give up waiting for its agents to choose."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in PORTS]
        ports = {name: server.getsockname()[1] for name, server in zip(PORTS, servers, strict=True)}
    return {"object_store_memory": 10**8, **ports}


class Hosts:
    """A cluster with a head and two hosts."""

    def __init__(self, path):
        one_device = "--xla_force_host_platform_device_count=1"
        os.environ |= {"PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": one_device}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": 0,
                "object_store_memory": 10**8,
            },
        )
        self.hosts = [self.add(), self.add()]
        self.address = f"http://{self.cluster.head_node.webui_url}"
        self.client = JobSubmissionClient(self.address)

    def add(self):
        return self.cluster.add_node(num_cpus=1, **node_settings())

    def preempt(self, number):
        """Take a host away without notice."""
        self.cluster.remove_node(self.hosts.pop(number), allow_graceful=False)

    def submit(self, name, *arguments, **variables):
        """Through the launcher, as a user would."""
        environment = os.environ | {"JOB_NAME": name, "RAY_WORKERS": "2", "RAY_GPUS": "0", "RAY_ADDRESS": self.address}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = [ROOT / "launch" / "ray.sh", *map(str, arguments)]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def status(self, name):
        return self.client.get_job_status(name)

    def log(self, name):
        return self.client.get_job_logs(name)[-6000:]

    def wait(self, name, status):
        wait_until(lambda: self.status(name).is_terminal(), lambda: self.log(name))
        assert self.status(name) == status, self.log(name)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    (folder / "lclm_jax").mkdir()
    (folder / "lclm_jax" / "__main__.py").write_text(STAND_IN)
    return folder


@pytest.fixture(scope="module")
def hosts(stand_in):
    before = dict(os.environ)
    made = Hosts(stand_in)
    yield made
    made.cluster.shutdown()
    os.environ.clear()
    os.environ |= before


def plan(folder, statuses, seconds):
    (folder / "plan").write_text(json.dumps({"statuses": statuses, "seconds": seconds}))
    return folder


def test_a_process_on_each_host_is_started_again_after_status_75(hosts, tmp_path):
    awkward = ["a b", "$HOME", 'say "so"', "it's", "é", "*"]
    hosts.submit("saved", plan(tmp_path, [[75, 75], [0, 0]], [0, 0]), *awkward, LCLM_PREFLIGHT="1")
    hosts.wait("saved", JobStatus.SUCCEEDED)
    calls = [lines(tmp_path / f"calls-{rank}") for rank in (0, 1)]
    assert [[call["LCLM_RESTARTS"] for call in own] for own in calls] == [["0", "1"]] * 2
    for first, second in zip(*calls, strict=True):
        assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
        assert first["arguments"] == ["train", str(tmp_path), *awkward]
        assert first["JAX_NUM_PROCESSES"] == "2" and first["LCLM_PREFLIGHT"] == "1"


def test_an_error_fails_the_job_at_once(hosts, tmp_path):
    hosts.submit("wrong", plan(tmp_path, [[1, 75]], [0]))
    hosts.wait("wrong", JobStatus.FAILED)
    assert len(lines(tmp_path / "calls-0")) == 1


def test_a_host_that_is_lost_is_replaced(hosts, tmp_path):
    hosts.submit("lost", plan(tmp_path, [[75, 75], [0, 0]], [5, 0]))
    wait_until(lambda: all(lines(tmp_path / f"calls-{rank}") for rank in (0, 1)), lambda: hosts.log("lost"))
    hosts.preempt(1)
    wait_until(
        lambda: "waiting for 2 hosts" in hosts.log("lost").partition("starting again")[2], lambda: hosts.log("lost")
    )
    hosts.hosts.append(hosts.add())
    hosts.wait("lost", JobStatus.SUCCEEDED)
    assert [call["LCLM_RESTARTS"] for call in lines(tmp_path / "calls-1")] == ["0", "1"]
    assert "was lost with its host" in hosts.log("lost")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Settings that point at a tokenizer and a corpus, prepared once."""
    folder = tmp_path_factory.mktemp("prepared")
    command = [sys.executable, "-m", "lclm_jax", "data", "prepare", TINY, "--set", f"run_dir={folder}"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": ""})
    more = ["tokenizer.vocab_size=null", f"tokenizer.decoder={folder}/tokenizer", f"data.prepared={folder}/data"]
    return [*more, f"stages.base.steps={STEPS}"]


def losses(run):
    records = lines(run / "stages" / "base" / "metrics.jsonl")
    return {record["step"]: record["loss_nats"] for record in records if "loss_nats" in record}


@pytest.fixture
def train(hosts, prepared, stand_in, tmp_path):
    """``train(name)``: start a training run of two processes; its folder."""
    (stand_in / "lclm_jax").rename(stand_in / "aside")

    def start(name):
        run = tmp_path / name
        hosts.submit(name, TINY, *(part for text in (*prepared, f"run_dir={run}") for part in ("--set", text)))
        return run

    yield start
    (stand_in / "aside").rename(stand_in / "lclm_jax")


def test_a_preempted_run_ends_with_the_same_losses(hosts, train):
    whole = train("whole")
    hosts.wait("whole", JobStatus.SUCCEEDED)
    run = train("preempted")
    wait_until(lambda: len(losses(run)) > 20 or hosts.status("preempted").is_terminal(), lambda: hosts.log("preempted"))
    hosts.preempt(0)
    hosts.hosts.append(hosts.add())
    hosts.wait("preempted", JobStatus.SUCCEEDED)
    assert "starting again (1)" in hosts.log("preempted")
    assert losses(run) == losses(whole) and len(losses(whole)) == STEPS
    events = lines(run / "stages" / "base" / "events.jsonl")
    assert [event["step"] > 0 for event in events if event["kind"] == "begin"] == [False, True]


def test_processes_end_with_their_actors(hosts, tmp_path):
    """A job that is stopped leaves nothing that holds a device."""
    hosts.submit("stopped", plan(tmp_path, [[0, 0]], [600]))
    wait_until(lambda: all(lines(tmp_path / f"calls-{rank}") for rank in (0, 1)), lambda: hosts.log("stopped"))
    hosts.client.stop_job("stopped")
    pids = [lines(tmp_path / f"calls-{rank}")[0]["pid"] for rank in (0, 1)]

    def gone():
        for pid in pids:
            try:
                os.kill(pid, signal.SIG_DFL)
            except ProcessLookupError:
                continue
            return False
        return True

    wait_until(gone, lambda: hosts.log("stopped"), 60)

"""launch/ray.sh on a real Ray cluster of this machine, a raylet for each host: preempted runs are started again.

Run by `make test-ray`.
"""

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

# Read when Ray is imported: on a busy machine its daemons take longer to start than it allows for.
os.environ |= {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
}

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

    def __init__(self, path, dashboard=False):
        one_device = "--xla_force_host_platform_device_count=1"
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # jobs call `python`, as on a real cluster
        os.environ |= {"PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": one_device, "PATH": programs}
        head = {"num_cpus": 0, "include_dashboard": dashboard, "dashboard_port": 0, **node_settings()}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.hosts = [self.add(), self.add()]

    @property
    def dashboard(self):
        return f"http://{self.cluster.head_node.webui_url}"

    def add(self):
        return self.cluster.add_node(num_cpus=1, **node_settings())

    def preempt(self, number):
        """Take a host away without notice."""
        self.cluster.remove_node(self.hosts.pop(number), allow_graceful=False)

    def start(self, folder, *arguments):
        """The entry point that the launcher would submit, here as a process; its log is in ``folder``."""
        variables = {"JOB_NAME": "run", "RAY_WORKERS": "2", "RAY_GPUS": "0", "RAY_ADDRESS": "http://head:8265"}
        command = [ROOT / "launch" / "ray.sh", "--dry-run", *map(str, arguments)]
        shown = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout
        words = shlex.split(shown.removeprefix("+ "))
        driver = words[words.index("--") + 2 :]
        with (folder / "log").open("w") as log:
            environment = os.environ | {"RAY_ADDRESS": self.cluster.address}
            return subprocess.Popen(
                [sys.executable, *driver], cwd=ROOT / "launch" / "ray", env=environment, stdout=log, stderr=log
            )


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    (folder / "lclm_jax").mkdir()
    (folder / "lclm_jax" / "__init__.py").touch()
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


def whole_log(folder):
    return (folder / "log").read_text()


def log(folder):
    """The end of the driver's log, to be shown when a test fails."""
    return whole_log(folder)[-6000:]


def wait_for_calls(folder):
    wait_until(lambda: all(lines(folder / f"calls-{rank}") for rank in (0, 1)), lambda: log(folder))


AWKWARD = ["a b", "$HOME", 'say "so"', "it's", "é", "*"]


def check_calls(folder, restarts):
    """Each process was started so often, with the same coordinator and arguments, and told how often before."""
    calls = [lines(folder / f"calls-{rank}") for rank in (0, 1)]
    assert [[call["LCLM_RESTARTS"] for call in own] for own in calls] == [[str(n) for n in range(restarts + 1)]] * 2
    for first, second in zip(*calls, strict=True):
        assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
        assert first["arguments"] == ["train", str(folder), *AWKWARD]
        assert first["JAX_NUM_PROCESSES"] == "2"


def test_a_process_on_each_host_is_started_again_after_status_75(hosts, tmp_path):
    driver = hosts.start(tmp_path, plan(tmp_path, [[75, 75], [0, 0]], [0, 0]), *AWKWARD)
    assert driver.wait(600) == 0, log(tmp_path)
    check_calls(tmp_path, restarts=1)


def test_an_error_fails_the_job_at_once(hosts, tmp_path):
    driver = hosts.start(tmp_path, plan(tmp_path, [[1, 75]], [0]))
    assert driver.wait(600) == 1, log(tmp_path)
    assert len(lines(tmp_path / "calls-0")) == 1


def test_a_host_that_is_lost_is_replaced(hosts, tmp_path):
    driver = hosts.start(tmp_path, plan(tmp_path, [[75, 75], [0, 0]], [5, 0]), *AWKWARD)
    wait_for_calls(tmp_path)
    hosts.preempt(1)
    wait_until(
        lambda: "waiting for 2 hosts" in whole_log(tmp_path).partition("starting again")[2], lambda: log(tmp_path)
    )
    hosts.hosts.append(hosts.add())
    assert driver.wait(600) == 0, log(tmp_path)
    check_calls(tmp_path, restarts=1)
    assert "was lost with its host" in whole_log(tmp_path)


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
    """``train(name)``: start a training run of two processes; its driver and its folder."""
    (stand_in / "lclm_jax").rename(stand_in / "aside")

    def start(name):
        run = tmp_path / name
        run.mkdir()
        settings = [part for text in (*prepared, f"run_dir={run}") for part in ("--set", text)]
        return hosts.start(run, TINY, *settings), run

    yield start
    (stand_in / "aside").rename(stand_in / "lclm_jax")


def test_a_preempted_run_ends_with_the_same_losses(hosts, train):
    driver, whole = train("whole")
    assert driver.wait(1200) == 0, log(whole)
    driver, run = train("preempted")
    wait_until(lambda: len(losses(run)) > 20 or driver.poll() is not None, lambda: log(run))
    hosts.preempt(0)
    hosts.hosts.append(hosts.add())
    assert driver.wait(1200) == 0, log(run)
    assert "starting again (1)" in whole_log(run)
    assert losses(run) == losses(whole) and len(losses(whole)) == STEPS
    events = lines(run / "stages" / "base" / "events.jsonl")
    assert [event["step"] > 0 for event in events if event["kind"] == "begin"] == [False, True]


def test_a_job_that_is_stopped_leaves_nothing_that_holds_a_device(hosts, tmp_path):
    driver = hosts.start(tmp_path, plan(tmp_path, [[0, 0]], [600]))
    wait_for_calls(tmp_path)
    driver.kill()  # Ray kills the actors of a driver that is gone, and their processes end with them
    pids = [lines(tmp_path / f"calls-{rank}")[0]["pid"] for rank in (0, 1)]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), lambda: log(tmp_path), 120)


def test_the_launcher_submits_a_job(stand_in, tmp_path):
    """`ray job submit`, to a dashboard."""
    before = dict(os.environ)
    hosts = Hosts(stand_in, dashboard=True)
    try:
        variables = {"JOB_NAME": "saved", "RAY_WORKERS": "2", "RAY_GPUS": "0", "RAY_ADDRESS": hosts.dashboard}
        variables |= {"LCLM_PREFLIGHT": "1"}
        command = [ROOT / "launch" / "ray.sh", plan(tmp_path, [[75, 75], [0, 0]], [0, 0]), *AWKWARD]
        subprocess.run(command, env=os.environ | variables, check=True)
        client = JobSubmissionClient(hosts.dashboard)
        wait_until(lambda: client.get_job_status("saved").is_terminal(), lambda: client.get_job_logs("saved"))
        assert client.get_job_status("saved") == JobStatus.SUCCEEDED, client.get_job_logs("saved")
        check_calls(tmp_path, restarts=1)
        assert lines(tmp_path / "calls-0")[0]["LCLM_PREFLIGHT"] == "1"
    finally:
        hosts.cluster.shutdown()
        os.environ.clear()
        os.environ |= before

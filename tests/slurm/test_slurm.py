"""The shipped sbatch script on a real SLURM: preempted runs are requeued and end with the losses of undisturbed ones.

Run by `make test-slurm`, which installs SLURM.
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAUNCHER = HERE.parents[1] / "launch" / "slurm.sh"
STEPS = 200
spec = importlib.util.spec_from_file_location("cluster", HERE / "cluster.py")
cluster_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cluster_module)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = cluster_module.missing_programs()
    assert not missing, f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    cluster = cluster_module.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Settings that point at a tokenizer and a corpus, prepared once."""
    folder = tmp_path_factory.mktemp("prepared")
    code = "from lclm_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "data", "prepare", HERE / "tiny.yaml", "--set", f"run_dir={folder}"]
    subprocess.run(command, check=True)
    return ["tokenizer.vocab_size=null", f"tokenizer.decoder={folder}/tokenizer", f"data.prepared={folder}/data"]


REAL = f'#!/bin/sh\nexec {sys.executable} -c "from lclm_jax.cli import main; main()" "$@"\n'
STAND_IN = """#!/bin/sh
# Stands for `lclm train`: runs until it is told to stop, then says so with status 75; is done when it is started again.
trap 'echo saved; exit 75' USR1 TERM
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && exit 0
echo started
while true; do sleep 0.2; done
"""


def submit(cluster, folder, program, arguments=()):
    """Submit a run of two tasks of ``program`` in ``folder``; returns the job's number."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    lclm = bin_folder / "lclm"
    lclm.write_text(program)
    lclm.chmod(0o755)
    environment = cluster.environment | {
        "PATH": f"{bin_folder}:{cluster.environment['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "SBATCH_ARGS": f"--parsable --ntasks-per-node=2 --time=60 --output={folder}/log",
    }
    command = [LAUNCHER, HERE / "tiny.yaml", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def train(cluster, prepared, folder):
    """Submit a training run; returns the job's number and the run's folder."""
    run = folder / "run"
    arguments = [part for text in (f"run_dir={run}", *prepared) for part in ("--set", text)]
    return submit(cluster, folder, REAL, arguments), run


def losses(run):
    """Loss of every step, the last record of a step counting."""
    path = run / "stages" / "base" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {record["step"]: record["loss_nats"] for record in records if "loss_nats" in record}


def wait_for(cluster, job, what, condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        state = cluster.state(job)
        assert state["JobState"] not in ("FAILED", "CANCELLED", "TIMEOUT"), _log(state)
        assert time.monotonic() < end, f"{what}: not within {seconds} s\n{_log(state)}"
        time.sleep(0.2)


def _log(state):
    said = " ".join(f"{name}={state.get(name)}" for name in ("JobState", "Reason", "ExitCode", "Restarts"))
    return f"{said}\n{Path(state['StdOut']).read_text()[-4000:]}"


def completed(cluster, job):
    return lambda: cluster.state(job)["JobState"] == "COMPLETED"


PREEMPTIONS = {
    "requeued": "scontrol requeue",  # what SLURM does itself when a job of more right needs the node
    "near its limit": "scancel --signal=USR1",
    "with grace": "scancel --signal=TERM",
    "by a signal to the shell": "scancel --batch --signal=TERM",
}


@pytest.mark.parametrize("how", PREEMPTIONS)
def test_every_preemption_lets_the_tasks_save_and_starts_them_again(cluster, tmp_path, how):
    job, log = submit(cluster, tmp_path, STAND_IN), tmp_path / "log"
    wait_for(cluster, job, "the start", lambda: log.exists() and log.read_text().count("started") == 2)
    again(cluster, job, PREEMPTIONS[how])
    assert log.read_text().count("saved") == 2 or how == "requeued"


def test_a_cancelled_job_saves_and_stays_cancelled(cluster, tmp_path):
    job, log = submit(cluster, tmp_path, STAND_IN), tmp_path / "log"
    wait_for(cluster, job, "the start", lambda: log.exists() and log.read_text().count("started") == 2)
    cluster.ask("scancel", job)
    cluster_module.wait_for(lambda: cluster.state(job)["JobState"] == "CANCELLED", 120, "the job goes on")
    assert log.read_text().count("saved") == 2
    assert cluster.state(job)["Restarts"] == "0"


@pytest.mark.parametrize("how", ["requeued", "near its limit"])
def test_a_preempted_run_ends_with_the_same_losses(cluster, prepared, tmp_path, how, undisturbed):
    job, run = train(cluster, prepared, tmp_path)
    wait_for(cluster, job, "the first steps", lambda: len(losses(run)) > 30)
    again(cluster, job, PREEMPTIONS[how], lambda: len(losses(run)) < STEPS)
    assert losses(run) == undisturbed


def again(cluster, job, preempt, unfinished=lambda: True):
    """Preempt ``job``, see that it starts a second time, and wait for its end."""
    cluster.ask(*preempt.split(), job)
    wait_for(cluster, job, "the second start", lambda: cluster.state(job)["Restarts"] == "1")
    assert unfinished()
    wait_for(cluster, job, "the end of its first run", lambda: cluster.state(job)["JobState"] != "COMPLETING")
    if cluster.state(job)["JobState"] == "PENDING":
        # SLURM holds a requeued job back for two minutes. One that starts in the second in which it was requeued fails:
        # slurmd takes its credential for the revoked one.
        cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    wait_for(cluster, job, "the end", completed(cluster, job))
    assert cluster.state(job)["Restarts"] == "1"


@pytest.fixture(scope="module")
def undisturbed(cluster, prepared, tmp_path_factory):
    """Losses of the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job, run = train(cluster, prepared, folder)
    wait_for(cluster, job, "the end", completed(cluster, job))
    found = losses(run)
    assert sorted(found) == list(range(STEPS))
    return found

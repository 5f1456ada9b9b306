"""Run `lclm train` on a Ray cluster: an actor on each host, each with one process of the run.

    python ray_job.py --workers N [--gpus N | --tpus N] [--cpus N] [--max-restarts N] [--verb train] ARGUMENTS

ARGUMENTS is the list of arguments of the command, as base64 of JSON, so that no shell on the way can change it. This is
the entry point of a job, which launch/ray.sh submits; it needs Ray, and where the actors run `lclm_jax` as well.

Exit status 75 of a process, or the loss of one (its host was preempted), starts all processes again, on the hosts that
there are then, and tells them so (LCLM_RESTARTS); 1 and 2, an error that a restart would meet again, end the job.
"""

import argparse
import base64
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

RESTART = 75
"""Exit status that asks for a restart: saved and stopped, or another process was lost."""
GRACE_SECONDS = 660.0
"""How long the others may take to save and end, once one has ended."""


@ray.remote(max_concurrency=2, max_restarts=0)
class Host:
    """One host of the run; it runs one process, which ends with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def address(self) -> str:
        """``IP:PORT`` of this host, with a port that is free now."""
        with socket.create_server(("", 0)) as server:
            return f"{ray.util.get_node_ip_address()}:{server.getsockname()[1]}"

    def run(self, command: list[str], variables: dict[str, str]) -> int:
        """Exit status of ``lclm`` with ``command``; minus the signal's number if it was killed."""
        program = [sys.executable, "-m", "lclm_jax", *command]
        self._process = subprocess.Popen(program, env={**os.environ, **variables}, preexec_fn=_end_with_parent)
        return self._process.wait()

    def stop(self) -> None:
        """Ask the process to save and stop."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def _end_with_parent() -> None:
    """Let this process get SIGTERM when its actor dies, however it dies (PR_SET_PDEATHSIG of Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def run_once(options: argparse.Namespace, command: list[str], restarts: int) -> int:
    """Run the command on ``options.workers`` hosts; its exit status, ``RESTART`` if it should be started again."""
    bundle = {"CPU": options.cpus, "GPU": options.gpus, "TPU": options.tpus}
    bundle = {name: count for name, count in bundle.items() if count}
    group = placement_group([bundle] * options.workers, strategy=options.strategy)
    _say(f"waiting for {options.workers} hosts with {bundle}")
    try:
        while not group.wait(5):  # an autoscaler begins to look for them
            if _asked:
                return RESTART
        place = [PlacementGroupSchedulingStrategy(group, bundle_index) for bundle_index in range(options.workers)]
        hosts = [
            Host.options(
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                resources={"TPU": options.tpus} if options.tpus else None,
                scheduling_strategy=one,
            ).remote()
            for one in place
        ]
        return _outcome(_run_all(hosts, command, restarts))
    except ray.exceptions.RayActorError as error:  # before the processes were started
        _say(f"a host was lost: {error}")
        return RESTART
    finally:
        remove_placement_group(group)


def _run_all(hosts: list, command: list[str], restarts: int) -> list[int | None]:
    """Exit status of each process; None: its host was lost, or it did not end."""
    shared = {
        "JAX_COORDINATOR_ADDRESS": ray.get(hosts[0].address.remote()),
        "JAX_NUM_PROCESSES": str(len(hosts)),
        "LCLM_RESTARTS": str(restarts),
    }
    runs = [host.run.remote(command, {**shared, "JAX_PROCESS_ID": str(rank)}) for rank, host in enumerate(hosts)]
    waiting, statuses, deadline = dict(zip(runs, range(len(hosts)), strict=True)), [None] * len(hosts), None
    while waiting and (deadline is None or time.monotonic() < deadline):
        for done in ray.wait(list(waiting), timeout=1.0)[0]:
            rank = waiting.pop(done)
            try:
                statuses[rank] = ray.get(done)
                _say(f"process {rank} ended with status {statuses[rank]}")
            except ray.exceptions.RayError as error:
                _say(f"process {rank} was lost with its host: {str(error).splitlines()[0]}")
            deadline = deadline or time.monotonic() + GRACE_SECONDS
        if _asked and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
            for rank in waiting.values():
                hosts[rank].stop.remote()
    for host in hosts:
        ray.kill(host)
    return statuses


def _outcome(statuses: list[int | None]) -> int:
    """Exit status of the run by those of its processes."""
    for status in (1, 2):
        if status in statuses:
            return status
    return 0 if set(statuses) == {0} else RESTART


_asked: list[int] = []
"""Signals that ask this job to stop."""


def _say(text: str) -> None:
    sys.stderr.write(f"ray_job: {text}\n")
    sys.stderr.flush()


def main() -> int:
    """Run the command until it ends for good; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--tpus", type=float, default=0)
    parser.add_argument("--strategy", default="STRICT_SPREAD", help="PACK: several on a host, for a trial")
    parser.add_argument("--max-restarts", type=int, default=100)
    parser.add_argument("--verb", default="train")
    parser.add_argument("arguments")
    options = parser.parse_args()
    command = [options.verb, *json.loads(base64.b64decode(options.arguments))]
    signal.signal(signal.SIGTERM, lambda number, frame: _asked.append(number))
    ray.init(address="auto", ignore_reinit_error=True, log_to_driver=True)
    for restarts in range(options.max_restarts + 1):
        status = run_once(options, command, restarts)
        if status != RESTART or _asked:
            return status
        _say(f"stopped with status {RESTART}; starting again ({restarts + 1})")
    _say(f"gave up after {options.max_restarts} restarts")
    return RESTART


if __name__ == "__main__":
    sys.exit(main())

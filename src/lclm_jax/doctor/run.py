"""All checks of a job, in all its processes together."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import jax

from lclm_jax.config import Config, RunPaths
from lclm_jax.doctor import clocks, collectives, devices, limits, storage, versions
from lclm_jax.doctor.finding import Finding, merged
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import broadcast_from_process_0, gather_to_process_0, wait_for_all
from lclm_jax.train.core.initial_state import initial_state
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""After so long without an answer of devices, network or storage the process ends with status 1."""

Row = TypeVar("Row")


def examine(config: Config | None, expected_devices: int | None = None) -> list[Finding]:
    """Check the job; all its processes call it, inside ``join_processes``.

    Args:
        config: the run; None: only what holds for any run.
        expected_devices: of all processes together; None: what the mesh takes.

    Returns:
        In process 0 what was found. In the others one finding, which tells whether anything failed.
    """
    size = None if config is None else checkpoint_bytes(config)
    found = _gathered("limits", _of_this_machine(config, size))
    wait_for_all("clocks")
    found += _of_all("clocks", time.time(), lambda seconds: [clocks.check_clocks(seconds)])
    if config is not None:
        with _within(PATIENCE_SECONDS, "the storage of run_dir does not answer"):
            found += _storage(config, size)
    with _within(PATIENCE_SECONDS, "the devices, or the network between them, do not answer"):
        found += _devices(config, expected_devices)
    failed = broadcast_from_process_0("doctor", any(one.status == "failure" for one in found))
    if jax.process_index() == 0:
        return found
    return [Finding("job", "failure" if failed else "ok", "process 0 shows what was found")]


def _of_this_machine(config: Config | None, size: int | None) -> list[Finding]:
    processes = jax.process_count()
    found = [
        versions.check_versions(versions.installed_versions(), versions.nvidia_driver()),
        versions.check_environment(os.environ),
        *limits.local_limits(config, processes),
    ]
    if config is not None and size is not None:
        found += limits.check_disk(config, size, processes)
    if jax.local_devices()[0].platform in ("gpu", "cuda", "rocm"):
        found.append(limits.check_network(processes))
    return found


def _storage(config: Config, size: int | None) -> list[Finding]:
    run_dir, process = RunPaths(config).root, jax.process_index()
    measured = storage.measure_storage(run_dir, process)
    wrote = not isinstance(measured, Finding)
    found = _gathered("storage", [storage.check_storage(measured, size, jax.process_count())])
    if jax.process_count() > 1:
        found += _of_all("shared folder", wrote, lambda present: [storage.check_shared(run_dir, present)])
        wait_for_all("storage")
    storage.clean(run_dir, process)
    return found


def _devices(config: Config | None, expected: int | None) -> list[Finding]:
    present = devices.devices_present()
    number = devices.expected_devices(config, expected)
    found = _of_all(
        "devices", list(present), lambda rows: [devices.check_devices(_rows(devices.Present, rows), number)]
    )
    fit, mesh = devices.check_mesh(config)
    found += _gathered("mesh", [fit])
    work = devices.measure_devices()
    found += _of_all(
        "compute",
        list(work),
        lambda rows: [devices.check_device_work(_rows(devices.DeviceWork, rows), present.kind)],
    )
    for measured in collectives.measure_collectives(mesh):
        found += _of_all(
            "collective",
            list(measured),
            lambda rows: [collectives.check_collective(_rows(collectives.CollectiveTime, rows))],
        )
    return found


def _rows(kind, rows):
    """Named tuples again, after their way through JSON."""
    return [kind(*row) for row in rows]


def _gathered(what: str, own: Sequence[Finding]) -> list[Finding]:
    """The findings of all processes in process 0; nothing in the others."""
    everyone = gather_to_process_0(f"doctor {what}", [one.as_json() for one in own])
    return [] if everyone is None else merged([[_finding(one) for one in process] for process in everyone])


def _of_all(what: str, own: Row, check) -> list[Finding]:
    """``check`` of the values of all processes, in process 0; nothing in the others."""
    everyone = gather_to_process_0(f"doctor {what}", own)
    return [] if everyone is None else check(everyone)


def _finding(values: JsonObject) -> Finding:
    return Finding(**{**values, "processes": tuple(values["processes"])})


def checkpoint_bytes(config: Config) -> int:
    """Bytes of a checkpoint of the stage whose state is the largest: parameters and optimizer state, uncompressed."""
    params = abstract_params(config.model)
    sizes = []
    for stage in config.stages.values():
        optimizer = make_optimizer(config.train.optimizer, stage, params)
        state = jax.eval_shape(lambda tree, optimizer=optimizer: initial_state(tree, optimizer, 0), params)
        sizes.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)))
    return max(sizes)


@contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """End the process with status 1 if the block takes longer: what hangs in a driver cannot be interrupted."""

    def end() -> None:
        logger.critical("%s for %.0f s; look at the logs of all machines", what, seconds)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

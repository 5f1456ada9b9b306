"""Planted faults of a machine: memory, files, disks, network, clocks, storage."""

import os
import shutil
from pathlib import Path

import pytest

from lclm_jax.config import load_config
from lclm_jax.doctor import limits, storage
from lclm_jax.doctor.clocks import check_clocks
from lclm_jax.doctor.finding import Finding, merged
from lclm_jax.doctor.run import checkpoint_bytes
from lclm_jax.paths import to_path

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
OTHERS = ("base_varied", "stage0", "stage1", "stage2", "stage3")
EIGHT_ROWS = ("stages.base.batch_rows=8", *(f"stages.{name}=null" for name in OTHERS))
"""The demo's first stage, on eight devices."""


@pytest.fixture(scope="module")
def config():
    return load_config(DEMO)


def test_shared_memory(config):
    workers = load_config(DEMO, ("data.workers=2", "stages.base.batch_rows=4096"))
    assert limits.check_shared_memory(None, 2**30).status == "ok"
    assert limits.check_shared_memory(None, None).status == "ok"
    docker = limits.check_shared_memory(config, 64 * 2**20)
    assert docker.status == "warning" and "docker run --shm-size=16g" in docker.message
    full = limits.check_shared_memory(workers, 2**20)
    assert full.status == "failure" and "2 data workers may need" in full.message
    assert limits.check_shared_memory(workers, 2**36).status == "ok"


def test_open_files():
    assert limits.check_open_files(1024).status == "warning"
    assert "ulimit -n 65536" in limits.check_open_files(1024).message
    assert limits.check_open_files(65536).status == limits.check_open_files(None).status == "ok"


def test_disk(config, tmp_path):
    here = config.model_copy(update={"run_dir": str(tmp_path / "not" / "there")})
    size = checkpoint_bytes(config)
    assert size > 1e7, "parameters with two moments each"
    (found,) = limits.check_disk(here, size, 1)
    assert found.status == "ok" and found.values["needed_bytes"] == (config.train.checkpoint.keep_last + 1) * size
    (found,) = limits.check_disk(here, shutil.disk_usage(tmp_path).total, 1)
    assert found.status == "failure" and "lower train.checkpoint.keep_last" in found.message
    local = load_config(DEMO, (f"run_dir={tmp_path}", f"train.checkpoint.local_dir={tmp_path}"))
    assert [one.check for one in limits.check_disk(local, size, 4)] == ["disk", "local disk"]


def machine(folder, adapters=("mlx5_0",), locked="unlimited"):
    """A root folder with InfiniBand adapters and a limit of locked memory."""
    for name in adapters:
        (folder / "sys/class/infiniband" / name).mkdir(parents=True)
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/limits").write_text(
        f"Limit    Soft Limit\nMax locked memory     {locked}     {locked}   bytes\n"
    )
    return folder


@pytest.mark.parametrize(
    ("adapters", "library", "locked", "status", "words"),
    [
        (("mlx5_0",), "libibverbs.so.1", "unlimited", "ok", "1 adapters, libibverbs found"),
        ((), "libibverbs.so.1", "unlimited", "warning", "NCCL uses TCP unless a plugin"),
        (("mlx5_0",), None, "unlimited", "failure", "install libibverbs1 and ibverbs-providers"),
        (("mlx5_0",), "libibverbs.so.1", "65536", "failure", "only 64 KiB of memory may be locked"),
    ],
)
def test_network_of_gpus(tmp_path, adapters, library, locked, status, words):
    found = limits.check_network(2, machine(tmp_path, adapters, locked), lambda name: library)
    assert found.status == status and words in found.message
    assert limits.check_network(1, tmp_path).status == "ok"


def test_clocks():
    assert check_clocks([5.0]).status == check_clocks([5.0, 5.3, 4.9]).status == "ok"
    late = check_clocks([1000.0, 1000.1, 1007.0, 1000.0])
    assert late.status == "warning" and "7.0 s apart, that of process 2 the most" in late.message
    assert check_clocks([0.0, 90.0, 90.0]).status == "failure"


def test_storage_is_measured_and_left_as_it_was(tmp_path):
    run_dir = tmp_path / "run"
    rates = storage.measure_storage(run_dir, 0, size=2**16)
    assert not isinstance(rates, Finding) and min(rates) > 0
    rates = rates._replace(write_bytes_per_s=1e9)
    found = storage.check_storage(rates, 10**9, 2)
    assert found.status == "ok" and found.values["save_seconds"] == 0.5
    storage.clean(run_dir, 0)
    assert not run_dir.exists()
    slow = storage.check_storage(rates._replace(write_bytes_per_s=1e5), 10**9, 2)
    assert slow.status == "warning" and "takes 5,000 s" in slow.message


def test_storage_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    found = storage.measure_storage(tmp_path / "file" / "run", 0)
    assert isinstance(found, Finding) and "cannot write in run_dir=" in found.message
    monkeypatch.setattr(Path, "rename", lambda self, target: shutil.copytree(self, target))
    found = storage.measure_storage(tmp_path / "run", 0, size=16)
    assert isinstance(found, Finding) and "cannot rename in run_dir=" in found.message


def test_a_run_in_a_bucket(config):
    run_dir = to_path("memory://doctor/run")
    rates = storage.measure_storage(run_dir, 0, size=2**16)
    assert not isinstance(rates, Finding) and storage.check_storage(rates, None, 1).status == "ok"
    assert storage.check_shared(run_dir, [True]).status == "ok"
    assert storage.check_shared(run_dir, [True, True]).status == "failure"
    storage.clean(run_dir, 0)
    assert not (run_dir / ".doctor" / "process-0").exists()
    assert limits.check_disk(config.model_copy(update={"run_dir": "memory://doctor/run"}), 10**18, 1) == []


def test_storage_that_gives_back_other_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda size: b"a" * size)
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"b" * 16)
    found = storage.measure_storage(tmp_path, 0, size=16)
    assert isinstance(found, Finding) and "gives back other bytes than were written" in found.message


def test_a_folder_that_is_not_shared(tmp_path):
    for process in (0, 2):
        storage.measure_storage(tmp_path, process, size=16)
    assert storage.check_shared(tmp_path, [True, False, True]).status == "ok", "1 could not write: it says so itself"
    found = storage.check_shared(tmp_path, [True, True, True])
    assert found.status == "failure" and "process 0 does not see what process 1 wrote" in found.message


def test_findings_of_all_processes_are_one_list():
    bad = Finding("open files", "warning", "only 1,024")
    fine = [Finding("disk", "ok", f"{free} GB") for free in (5, 6, 7)]
    found = merged([[fine[0], bad], [fine[1], bad], [fine[2], Finding("open files", "ok", "65,536")]])
    assert [(one.check, one.status, one.processes) for one in found] == [
        ("disk", "ok", (0, 1, 2)),
        ("open files", "ok", (2,)),
        ("open files", "warning", (0, 1)),
    ]
    assert found[2].shown(3) == "processes 0-1: only 1,024" and found[0].shown(3) == "5 GB"

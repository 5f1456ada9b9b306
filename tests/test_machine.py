"""Limits of a job and of its surroundings: control groups, open files, readers that went away, folders."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lclm_jax import machine


def group(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A machine below ``root`` whose process is in ``groups``, with ``files`` below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def sixteen(monkeypatch):
    """A machine that would let this process use 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "350000 100000\n"}, 4),
        ("0::/job\n", {"job/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../outside\n", {"cpu.max": "300000 100000"}, 3),
        (
            "5:memory:/job\n4:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            16,
        ),
        # A container of version 1 sees its own group at the root of the controller, whatever /proc says.
        ("4:cpu,cpuacct:/docker/f00\n", {"cpu/cpu.cfs_quota_us": "800000", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/job\n", {"job/cpu.max": "no number"}, 16),
        ("odd", {}, 16),
    ],
)
def test_cores_are_those_of_the_affinity_and_the_quota(tmp_path, sixteen, groups, files, cores):
    assert machine.cores(group(tmp_path, groups, files)) == cores


def test_without_control_groups_the_affinity_counts(tmp_path, sixteen):
    assert machine.cores(tmp_path) == 16
    assert machine.memory_bytes(tmp_path) > 2**20


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/job\n", {"job/memory.max": "1000000\n", "memory.max": "max\n"}),
        ("9:memory:/job\n", {"memory/job/memory.limit_in_bytes": "1000000"}),
    ],
)
def test_memory_is_what_the_control_group_allows(tmp_path, groups, files):
    assert machine.memory_bytes(group(tmp_path, groups, files)) == 1_000_000


def test_a_control_group_without_a_limit_leaves_the_machines_memory(tmp_path):
    unlimited = {"memory/memory.limit_in_bytes": "9223372036854771712"}
    assert machine.memory_bytes(group(tmp_path, "9:memory:/\n", unlimited)) == machine.memory_bytes(tmp_path / "none")


def test_open_files_are_raised_as_far_as_allowed():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        machine.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(before[1], 2**16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_reader_that_went_away_is_noticed():
    code = "import sys, time; from lclm_jax.machine import nobody_reads; time.sleep(0.2); sys.exit(7 * nobody_reads())"
    read, write = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=write)
    os.close(write)
    os.close(read)
    assert child.wait() == 7


@pytest.mark.parametrize("xdg", [None, "", "relative/folder"])
def test_the_cache_of_a_user_without_a_home(monkeypatch, tmp_path, xdg):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/me")
    assert machine.cache_folder("lclm") == Path("/home/me/.cache/lclm")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert machine.cache_folder("lclm") == tmp_path / f"cache-{os.getuid()}" / "lclm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert machine.cache_folder("lclm") == Path("/scratch/cache/lclm")


def test_a_death_is_explained_by_its_signal():
    assert "SIGKILL, most likely because memory ran out (" in machine.explain_death(-9)
    assert machine.explain_death(-7) == "killed by SIGBUS, most likely because /dev/shm is full"
    assert machine.explain_death(-99) == "killed by signal 99"
    assert machine.explain_death(3) == "ended with status 3"


def test_every_reason_has_a_remedy_of_its_own():
    reasons = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.EIO)
    remedies = [machine.remedy(reason) for reason in reasons]
    assert len(set(remedies)) == len(remedies)
    assert "quota" in machine.remedy(errno.EDQUOT) and "ulimit -n" in machine.remedy(errno.EMFILE)

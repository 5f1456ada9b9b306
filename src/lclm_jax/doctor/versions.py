"""Versions that do not go together, and settings of the environment that slow a job down or make it wrong.

Nothing here imports JAX, which refuses some of these pairs with a traceback, and silently does without a plugin of
another version than its own.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from lclm_jax.doctor.finding import Finding
from lclm_jax.errors import LclmError
from lclm_jax.xla_flags import check_xla_flags

SHOWN = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
_PLUGINS = [name for name in SHOWN if name.endswith("-plugin")]
_DRIVERS = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}
"""Oldest branch of NVIDIA's driver: docs.jax.dev/en/latest/installation.html."""

_SLOW = {
    "JAX_DISABLE_JIT": ("1", "true"),
    "JAX_ENABLE_X64": ("1", "true"),
    "JAX_DEBUG_NANS": ("1", "true"),
    "CUDA_LAUNCH_BLOCKING": ("1",),
    "NCCL_P2P_DISABLE": ("1",),
    "NCCL_SHM_DISABLE": ("1",),
    "NCCL_IB_DISABLE": ("1",),
    "XLA_PYTHON_CLIENT_ALLOCATOR": ("platform",),
}
"""Variables, left over from looking for a fault, with the values that cost speed, memory or bits."""


def installed_versions() -> dict[str, str]:
    """Version of each package of ``SHOWN`` that is installed."""
    found = {}
    for name in SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def nvidia_driver(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's driver, from the kernel module or ``nvidia-smi``; None where there is none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    if found := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text):
        return found[1]
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


def check_versions(installed: Mapping[str, str], driver: str | None) -> Finding:
    """The first pair of versions that does not work, or all versions.

    Args:
        installed: package -> version.
        driver: of NVIDIA, if there is one.
    """
    shown = ", ".join(f"{name} {number}" for name, number in installed.items())
    values = {"python": sys.version.split()[0], **installed, **({"nvidia_driver": driver} if driver else {})}
    bad, doubtful = [*_wrong_plugins(installed, driver), *_unmet("lclm-jax", installed), *_unmet("jax", installed)], []
    if (libtpu := installed.get("libtpu")) and (wanted := _extra("jax", "libtpu")) and libtpu not in wanted.specifier:
        doubtful.append(f"libtpu {libtpu} is not the one that this JAX was tested with; pip install '{_plain(wanted)}'")
    if bad:
        return Finding("versions", "failure", "; ".join(bad), values)
    if doubtful:
        return Finding("versions", "warning", "; ".join(doubtful), values)
    return Finding("versions", "ok", f"{shown}{f', driver {driver}' if driver else ''}", values)


def _wrong_plugins(installed: Mapping[str, str], driver: str | None) -> Iterable[str]:
    plugins = [name for name in _PLUGINS if name in installed]
    if len(plugins) > 1:
        yield f"{' and '.join(plugins)} are both installed; pip uninstall one of them"
    for name in plugins:
        mine, theirs = Version(installed[name]).release[:3], Version(installed.get("jaxlib", "0")).release[:3]
        if mine != theirs:
            yield (
                f"{name} {installed[name]} is not of the version of jaxlib ({installed.get('jaxlib', 'absent')}): JAX"
                f" would ignore it and compute on the CPU; pip install '{name}=={installed.get('jaxlib', '')}'"
            )
        oldest = _DRIVERS.get(name)
        if driver and oldest and Version(driver).major < oldest:
            yield f"NVIDIA driver {driver} is too old for {name}, which needs {oldest} or newer; update the driver"


def _unmet(package: str, installed: Mapping[str, str]) -> Iterable[str]:
    """Requirements of ``package`` on what ``installed`` names that do not hold."""
    for need in _requirements(package):
        number = installed.get(need.name)
        if number and not need.marker and not need.specifier.contains(number, prereleases=True):
            yield f"{need.name} {number} does not go with {package}, which needs {need.specifier}; pip install '{need}'"


def _requirements(package: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in requires(package) or ()]
    except PackageNotFoundError:
        return []


def _extra(package: str, name: str) -> Requirement | None:
    """What ``package`` asks of ``name`` in one of its extras."""
    return next((need for need in _requirements(package) if need.name == name and need.marker), None)


def _plain(need: Requirement) -> str:
    return f"{need.name}{need.specifier}"


def check_environment(environment: Mapping[str, str], check_flags: Callable[[], None] = check_xla_flags) -> Finding:
    """Flags that XLA would end the process on, and variables that were meant for debugging."""
    try:
        check_flags()
    except LclmError as error:
        return Finding("flags", "failure", str(error))
    left = [f"{name}={environment[name]}" for name, bad in _SLOW.items() if environment.get(name, "").lower() in bad]
    if left:
        return Finding("flags", "warning", f"{', '.join(left)} is meant for debugging and costs speed; unset it")
    names = [name for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if environment.get(name)]
    return Finding(
        "flags", "ok", f"{' and '.join(names)} accepted" if "XLA_FLAGS" in names else "none that XLA refuses"
    )

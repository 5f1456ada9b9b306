"""Devices that are there and those that should be, the mesh, and whether all compute the same at the same speed."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import hardware_utils  # counts TPU chips and NVIDIA GPUs without a driver; there is no public door to it
from jax.sharding import Mesh

from lclm_jax.config import Config, MeshConfig
from lclm_jax.doctor.finding import Finding
from lclm_jax.errors import LclmError
from lclm_jax.parallel import AXES, make_mesh, validate_mesh
from lclm_jax.parallel.hardware import peak_flops
from lclm_jax.text.run_tokenizers import resolve

_SLOW, _OF_PEAK = 0.8, 0.5
"""A device below this part of the median, or all below this part of the peak, deserve a word."""


class Present(NamedTuple):
    """What JAX sees in one process."""

    platform: str
    kind: str
    local: int
    """Devices of this process."""
    gpus: int
    """NVIDIA GPUs of the machine, whatever JAX makes of them."""
    tpu_chips: int


def devices_present(root: Path = Path("/")) -> Present:
    """Devices of JAX and of the machine; ``root``: where /proc is."""
    local = jax.local_devices()
    gpus = len(list(root.glob("proc/driver/nvidia/gpus/*")))
    chips = hardware_utils.num_available_tpu_chips_and_device_id()[0]
    return Present(local[0].platform, local[0].device_kind, len(local), gpus, chips)


def check_devices(present: Sequence[Present], expected: int | None) -> Finding:
    """Compare the devices of all processes with each other, with the machine and with the number that is ``expected``.

    Args:
        present: what each process sees.
        expected: devices of all processes together; None: any number.
    """
    total = sum(one.local for one in present)
    first = present[0]
    values = {"devices": total, "expected": expected, "kind": first.kind, "platform": first.platform}
    text = f"{total} {first.kind} ({first.platform}) in {len(present)} process{'es' if len(present) > 1 else ''}"
    if kinds := {(one.platform, one.kind) for one in present} - {(first.platform, first.kind)}:
        other = next(one for one in present if (one.platform, one.kind) in kinds)
        what = f"process {present.index(other)} has {other.kind} ({other.platform}), process 0 {first.kind}"
        return Finding("devices", "failure", f"{what}; run all on machines of one kind, with the same packages", values)
    for process, one in enumerate(present):
        hidden = f"{one.gpus} NVIDIA GPUs" if one.gpus else f"{one.tpu_chips} TPU chips" if one.tpu_chips else ""
        if one.platform == "cpu" and hidden:
            what = f"process {process} computes on the CPU, and its machine has {hidden}"
            fix = f"pip install 'lclm-jax[{'cuda' if one.gpus else 'tpu'}]', and unset JAX_PLATFORMS"
            return Finding("devices", "failure", f"{what}; {fix}", values)
    if expected is not None and total != expected:
        counts = [one.local for one in present]
        usual = statistics.mode(counts)
        odd = [f"process {process} has {count}" for process, count in enumerate(counts) if count != usual]
        where = f" ({', '.join(odd[:4])}, the others {usual})" if odd else ""
        what = f"{total} devices, and {expected} are expected{where}"
        return Finding("devices", "failure", f"{what}; look for lost devices, or change the mesh or --devices", values)
    return Finding("devices", "ok", text, values)


def expected_devices(config: Config | None, devices: int | None) -> int | None:
    """``--devices``, else what the mesh of ``config`` takes; None: the mesh takes whatever there is."""
    sizes = () if config is None else tuple(getattr(config.mesh, axis) for axis in AXES)
    if devices is not None or not sizes or -1 in sizes:
        return devices
    return int(np.prod(sizes))


def check_mesh(config: Config | None) -> tuple[Finding, Mesh]:
    """Whether the mesh of ``config`` takes these devices and divides its sizes, and a mesh to measure on."""
    try:
        mesh = make_mesh(MeshConfig() if config is None else config.mesh)
        if config is not None:
            validate_mesh(_resolved(config), mesh)
    except LclmError as error:
        return Finding("mesh", "failure", str(error)), make_mesh(MeshConfig())
    shown = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return Finding("mesh", "ok", shown + ("" if config is None else ": fits"), {"mesh": dict(mesh.shape)}), mesh


def _resolved(config: Config) -> Config:
    """With the ids of memory tokens, if there is a tokenizer: sizes do not depend on them."""
    try:
        return resolve(config)
    except LclmError:
        return config


class DeviceWork(NamedTuple):
    """A matrix product, the same on each device of one process."""

    flops_per_s: list[float]
    checksums: list[int]
    """Sum of the bits of the result."""


def measure_devices(size: int | None = None, repeats: int = 3) -> DeviceWork:
    """Multiply the same bfloat16 matrices of [size, size] on each device of this process."""
    devices = jax.local_devices()
    size = size or (256 if devices[0].platform == "cpu" else 8192)
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((size, size), np.float32).astype(jnp.bfloat16) for _ in range(2))
    rates, sums = [], []
    for device in devices:
        x, y = jax.device_put((left, right), device)
        checksum = int(_product(x, y))  # compiles
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            checksum = int(_product(x, y))
            seconds.append(time.perf_counter() - begin)
        rates.append(2 * size**3 / min(seconds))
        sums.append(checksum)
    return DeviceWork(rates, sums)


@jax.jit
def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum of the bits of ``x @ y``, uint32, which wraps around."""
    product = jnp.matmul(x, y, preferred_element_type=jnp.float32)
    return jnp.sum(jax.lax.bitcast_convert_type(product, jnp.uint32), dtype=jnp.uint32)


def check_device_work(work: Sequence[DeviceWork], kind: str) -> Finding:
    """Compare the devices of all processes: other bits mean a broken one, less speed a hot or a shared one."""
    places = [(process, device) for process, one in enumerate(work) for device in range(len(one.checksums))]
    sums = [value for one in work for value in one.checksums]
    rates = [rate for one in work for rate in one.flops_per_s]
    usual, middle, peak = statistics.mode(sums), statistics.median(rates), peak_flops(kind)
    values = {"median_flops_per_s": middle, "least_flops_per_s": min(rates), "peak_flops_per_s": peak}
    if odd := [place for place, value in zip(places, sums, strict=True) if value != usual]:
        what = f"{_named(odd)} computes other bits than the rest (silent data corruption)"
        return Finding("compute", "failure", f"{what}; take the machine out of the job", values)
    text = f"{middle / 1e12:.3g} TFLOP/s a device, the same bits on all {len(sums)}"
    if peak is None:
        return Finding("compute", "ok", text, values)
    if slow := [place for place, rate in zip(places, rates, strict=True) if rate < _SLOW * middle]:
        what = f"{_named(slow)} makes {min(rates) / 1e12:.3g} TFLOP/s, the others {middle / 1e12:.3g}"
        return Finding("compute", "warning", f"{what}; look for other jobs, heat, or a lowered clock", values)
    if middle < _OF_PEAK * peak:
        what = f"{middle / 1e12:.3g} TFLOP/s a device, {middle / peak:.0%} of the peak of {kind}"
        return Finding("compute", "warning", f"{what}; look for other jobs, heat, or lowered clocks", values)
    return Finding("compute", "ok", f"{text}, {middle / peak:.0%} of the peak", values)


def _named(places: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"device {device} of process {process}" for process, device in places[:4])

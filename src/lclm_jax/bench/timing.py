"""Clocks, peaks measured on the spot, and what a measurement was made on."""

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.bench.cases import Case
from lclm_jax.machine import cores
from lclm_jax.types import JsonObject, PyTree

_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "torch", "transformers", "tokamax")


class Peaks(NamedTuple):
    """What this device reaches in one large product and one large copy."""

    matmul_flops: float
    """FLOP/s of a square product; bfloat16 on accelerators, float32 on a CPU."""
    copy_bytes: float
    """Bytes read and written in a second by ``x + 1``."""


def on_cpu() -> bool:
    """Whether JAX's default device is a CPU: then times say nothing about kernels."""
    return jax.devices()[0].platform == "cpu"


def surroundings() -> JsonObject:
    """Device, versions and cores."""
    device = jax.devices()[0]
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform": device.platform,
        "machine": platform.machine(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": versions,
    }


def seconds_of(run: Callable[[], PyTree], repeats: int = 5, least_seconds: float = 0.1) -> float:
    """Median time of ``run()``, which returns JAX arrays, after one call to warm up.

    A repeat calls as often as takes ``least_seconds`` and waits once, so that what a call costs the host is hidden as
    it is in training.
    """
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    calls = max(1, int(least_seconds / max(time.perf_counter() - start, 1e-6)))
    measured = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            results = run()
        jax.block_until_ready(results)
        measured.append((time.perf_counter() - start) / calls)
    return statistics.median(measured)


def measure_peaks() -> Peaks:
    """Peaks of the default device; the product and the copy are large enough to fill an accelerator."""
    size, dtype = (1024, jnp.float32) if on_cpu() else (8192, jnp.bfloat16)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    matmul = 2 * size**3 / seconds_of(lambda: product(x, x))
    long = jnp.ones(2**24 if on_cpu() else 2**29, jnp.bfloat16)
    copy = jax.jit(lambda a: a + 1)
    return Peaks(matmul, 2 * long.nbytes / seconds_of(lambda: copy(long)))


def speed(case: Case, which: int, seconds: float, peaks: Peaks) -> dict[str, float]:
    """Rates of a pass (0: forward, 1: forward + backward) that took ``seconds``."""
    rates = {"seconds": seconds}
    if case.flops[which]:
        rates["tflops"] = case.flops[which] / seconds / 1e12
        rates["share_of_matmul"] = case.flops[which] / seconds / peaks.matmul_flops
    if case.bytes[which]:
        rates["gbytes"] = case.bytes[which] / seconds / 1e9
        rates["share_of_copy"] = case.bytes[which] / seconds / peaks.copy_bytes
    return rates

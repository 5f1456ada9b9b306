"""Every kernel beside its alternatives: right first, then fast."""

import logging
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.bench.cases import Case, Function, attention_cases, cross_entropy_cases, pooling_cases
from lclm_jax.bench.timing import Peaks, measure_peaks, on_cpu, seconds_of, speed, surroundings
from lclm_jax.bench.torch_attention import torch_rows
from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, PyTree

logger = logging.getLogger(__name__)

KERNELS = {"attention": attention_cases, "pooling": pooling_cases, "cross_entropy": cross_entropy_cases}

TOLERANCE = 0.03

"""Largest difference from float32 that counts as right, as a share of the largest value: bfloat16 has 8 bits."""


def bench_kernels(names: Iterable[str] = tuple(KERNELS), small: bool | None = None) -> JsonObject:
    """Measure the kernels ``names``; on a CPU (``small``) only check them, on small shapes.

    Returns:
        JSON values: ``surroundings``, ``peaks`` (None where times say nothing), and ``rows``, one per case and way of
        computing it: errors against float32 as shares of the largest value, and seconds, TFLOP/s, GB/s and the share of
        the measured peak of a forward pass and of forward + backward. What refuses a case says why in ``refused``.
    """
    small = on_cpu() if small is None else small
    peaks = None if small else measure_peaks()
    rows = []
    for name in names:
        for case in KERNELS[name](small):
            logger.info("%s: %s", case.kernel, case.shape)
            rows += measure_case(case, peaks)
            if name == "attention":
                rows += torch_rows(case, peaks)
    return {
        "surroundings": surroundings(),
        "measures": "correctness alone: times on a CPU say nothing about these kernels" if small else "time",
        "peaks": None if peaks is None else peaks._asdict(),
        "rows": rows,
    }


def measure_case(case: Case, peaks: Peaks | None) -> list[JsonObject]:
    """One row for every way of computing ``case``, as in ``bench_kernels``; without ``peaks`` they are only checked."""
    picked = tuple(array.astype(jnp.float32) for array in case.pick(case.arrays))
    bar = _bar(case)
    truth = jax.device_get(jax.jit(_with_gradients(case.truth))(case.pick_output(bar), *picked))
    return [_row(case, name, run, (bar, truth), peaks) for name, run in case.contenders.items()]


def _row(case: Case, name: str, run: Function, expected: tuple[PyTree, PyTree], peaks: Peaks | None) -> JsonObject:
    """One way of computing a case; a refusal, or memory that does not suffice, is a result as well."""
    row: JsonObject = {"kernel": case.kernel, "shape": case.shape, "way": name}
    forward, both = jax.jit(run), jax.jit(_with_gradients(run))
    bar, (true_output, true_gradients) = expected
    try:
        output, gradients = both(bar, *case.arrays)
        row["error"] = _error(case.pick_output(output), true_output)
        pairs = zip(case.pick(gradients), true_gradients, strict=True)
        row["gradient_error"] = max(_error(*pair) for pair in pairs)
        row["right"] = max(row["error"], row["gradient_error"]) <= TOLERANCE
        del output, gradients
        if peaks is not None:
            row["forward"] = speed(case, 0, seconds_of(lambda: forward(*case.arrays)), peaks)
            row["both"] = speed(case, 1, seconds_of(lambda: both(bar, *case.arrays)), peaks)
    except (LclmError, ValueError, NotImplementedError, RuntimeError) as error:
        row["refused"] = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return row


def _with_gradients(run: Function) -> Function:
    """(cotangent, inputs) -> (output, gradients of all inputs)."""

    def both(bar, *arrays):
        output, pull = jax.vjp(run, *arrays)
        return output, pull(bar.astype(output.dtype))

    return both


def _bar(case: Case) -> jax.Array:
    """A cotangent of the output."""
    first = next(iter(case.contenders.values()))
    shape = jax.eval_shape(first, *case.arrays).shape
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.bfloat16)


def _error(got: jax.Array, want: jax.Array) -> float:
    true = np.asarray(want, np.float32)
    return float(np.abs(np.asarray(got, np.float32) - true).max() / max(np.abs(true).max(), 1e-30))

"""torch's scaled-dot-product attention on the same inputs, where torch is present and sees the device."""

import importlib.util
import statistics
from collections.abc import Callable
from types import ModuleType

import jax
import numpy as np

from lclm_jax.bench.cases import Case
from lclm_jax.bench.timing import Peaks
from lclm_jax.types import JsonObject, PyTree


def torch_rows(case: Case, peaks: Peaks | None) -> list[JsonObject]:
    """The row of torch for a single-segment case on a GPU; none otherwise, and none on a CPU."""
    if peaks is None or "packed" in case.shape or importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    q, k, v = (
        torch.tensor(np.asarray(x, np.float32)).to("cuda", torch.bfloat16).transpose(1, 2).requires_grad_()
        for x in jax.device_get(case.arrays)
    )
    bar = torch.ones_like(q)

    def forward() -> PyTree:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def both() -> PyTree:
        return torch.autograd.grad(forward(), (q, k, v), bar)

    from lclm_jax.bench.timing import speed

    row = {"kernel": case.kernel, "shape": case.shape, "way": "torch sdpa"}
    times = {"forward": _seconds(torch, forward), "both": _seconds(torch, both)}
    return [row | {name: speed(case, which, times[name], peaks) for which, name in enumerate(("forward", "both"))}]


def _seconds(torch: ModuleType, run: Callable[[], PyTree], repeats: int = 5, calls: int = 10) -> float:
    run()
    measured = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        measured.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(measured)

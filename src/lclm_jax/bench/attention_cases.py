"""Attention at the shapes of the published models, beside what libraries offer for the same mask."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.bench.cases import Case
from lclm_jax.config import ModelConfig
from lclm_jax.kernels.attention import BACKENDS, attention

_BACKENDS: tuple[str, ...] = get_args(ModelConfig.model_fields["attention"].annotation)
_KERNELS = ("splash", "pallas_tpu", "pallas_gpu")
"""Backends that Pallas' interpreter runs on any platform."""
_REFERENCE_KEYS = 2048
"""Beyond this many keys the scores of all heads do not fit, and the reference is left out."""


def attention_cases(small: bool) -> list[Case]:
    """Encoder windows, the decoder's row packed and single, and a long single row; causal."""
    if small:
        heads = (4, 2, 64)
        shapes = [("windows", 2, 128, 1, heads), ("packed", 1, 256, 4, heads), ("single segment", 1, 512, 1, heads)]
    else:
        shapes = [
            ("windows", 64, 1024, 1, (16, 8, 128)),
            ("packed, 16 segments", 1, 16384, 16, (32, 8, 128)),
            ("single segment", 1, 16384, 1, (32, 8, 128)),
            ("single segment", 1, 131072, 1, (32, 8, 128)),
        ]
    return [_case(*shape, small) for shape in shapes]


def _case(name: str, rows: int, length: int, parts: int, heads: tuple[int, int, int], small: bool) -> Case:
    query_heads, kv_heads, width = heads
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(rows, length, count, width)), jnp.bfloat16)
        for count in (query_heads, kv_heads, kv_heads)
    )
    sizes = _part_sizes(length, parts)
    segments = jnp.asarray(np.broadcast_to(np.repeat(np.arange(1, parts + 1), sizes), (rows, length)), jnp.int32)
    pairs = rows * sum(size * (size + 1) / 2 for size in sizes)
    forward = 4.0 * pairs * query_heads * width
    group = query_heads // kv_heads

    def truth(q, k, v):
        return attention(q, k, v, segments=(segments[:1], segments[:1]), causal=True, backend="chunked")

    def pick(arrays):  # one row and one key head: the others are computed alike
        q, k, v = arrays
        return q[:1, :, :group], k[:1, :, :1], v[:1, :, :1]

    return Case(
        kernel="attention",
        shape=f"{name}, {rows} x {length}, {query_heads}/{kv_heads} heads of {width}, bfloat16",
        arrays=(q, k, v),
        contenders=_contenders(segments, parts, small),
        truth=truth,
        flops=(forward, 3.5 * forward),
        pick=pick,
        pick_output=lambda out: out[:1, :, :group],
    )


def _part_sizes(length: int, parts: int) -> list[int]:
    """Sizes of unaligned segments that fill a row."""
    cuts = [round(length * part / parts) + (part * 37 % 29 if 0 < part < parts else 0) for part in range(parts + 1)]
    return list(np.diff(cuts))


def _contenders(segments: jax.Array, parts: int, small: bool) -> dict[str, Callable[..., Any]]:
    """Ways to compute a case; ``small``: kernels in the interpreter, whatever they are for."""
    length, both = segments.shape[1], (segments, segments)

    def ours(q, k, v, backend):
        return attention(q, k, v, segments=both, causal=True, backend=backend)

    def interpreted(q, k, v, backend):
        return importlib.import_module(BACKENDS[backend]).run(q, k, v, both, True, interpret=True)

    names = [name for name in _BACKENDS if name != "reference" or length <= _REFERENCE_KEYS]
    found: dict[str, Callable[..., Any]] = {
        name: functools.partial(interpreted if small and name in _KERNELS else ours, backend=name) for name in names
    }
    if length <= _REFERENCE_KEYS:
        found["jax.nn (xla)"] = functools.partial(_jax_nn, segments=segments)
    if parts == 1:  # it has no segments
        found["jax.nn (cudnn)"] = functools.partial(_jax_nn, segments=None, implementation="cudnn")
    if importlib.util.find_spec("tokamax") is not None and parts == 1:
        found["tokamax"] = _tokamax
    return found


def _jax_nn(q, k, v, segments, implementation="xla"):
    mask = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=implementation)


def _tokamax(q, k, v):
    tokamax = importlib.import_module("tokamax")
    return tokamax.dot_product_attention(q, k, v, is_causal=True)

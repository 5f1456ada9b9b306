"""What `lclm bench kernels` compares: a case has inputs, several ways to compute it, and its work by formula."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.config.registry.pooling_backends import POOLING_BACKENDS
from lclm_jax.kernels.attention import attention, backend_module
from lclm_jax.kernels.cross_entropy import cross_entropy, overlaid_logits
from lclm_jax.kernels.normed_pooling import Pooling, Scales, normed_pool, reference, traffic
from lclm_jax.types import PyTree

Function = Callable[..., PyTree]


class Case(NamedTuple):
    """One operation on one shape. Functions take ``arrays`` and return one array."""

    kernel: str
    shape: str
    arrays: tuple[jax.Array, ...]
    contenders: Mapping[str, Function]
    truth: Function
    """In float32; takes ``picked`` arrays."""
    flops: tuple[float, float] = (0.0, 0.0)
    """Floating-point operations that are needed: forward, forward + backward."""
    bytes: tuple[float, float] = (0.0, 0.0)
    """Bytes that must be moved, for operations bound by memory."""
    pick: Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]] = lambda arrays: arrays
    """The part of (inputs, or gradients of them) that is checked, where the truth of all would not fit."""
    pick_output: Callable[[jax.Array], jax.Array] = lambda output: output


def pooling_cases(small: bool) -> list[Case]:
    """Pooling with both norms, at the encoder's shape."""
    rows, positions, width = (2, 256, 256) if small else (64, 1024, 1024)
    return [_pooling_case(kind, ratio, (rows, positions, width), small) for kind, ratio in _POOLINGS]


_POOLINGS = (("mean", 4), ("mean", 16), ("concat", 16), ("eos", 16))


def _pooling_case(kind: str, ratio: int, shape: tuple[int, int, int], small: bool) -> Case:
    rng, wide = np.random.default_rng(0), shape[2] * (ratio if kind == "concat" else 1)
    slots = shape[1] // ratio
    weights = jnp.asarray(rng.random(shape[:2]) < 0.95, jnp.float32)
    markers = jnp.asarray(rng.integers(0, shape[1], (shape[0], slots)), jnp.int32) if kind == "eos" else None
    x = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    scales = (jnp.ones(shape[2]), jnp.ones(wide))
    platform = jax.devices()[0].platform
    kernels = [name for name, row in POOLING_BACKENDS.items() if small or row.platform == platform]

    def run(x, scale, latent_scale, how):
        return normed_pool(how, x, weights, Scales(scale, latent_scale), markers)

    def truth(x, scale, latent_scale):
        return reference(options("reference"), x, weights, Scales(scale, latent_scale), markers)

    def options(backend):
        return Pooling(kind, ratio, 1e-6, 1e-6, backend, interpret=small)

    passes = [traffic(options("auto"), shape, "bfloat16", platform, backward).least for backward in (False, True)]
    return Case(
        kernel="pooling",
        shape=f"{kind} {ratio}, {shape[0]} x {shape[1]} x {shape[2]} bfloat16",
        arrays=(x, *scales),
        contenders={name: functools.partial(run, how=options(name)) for name in ("reference", *kernels)},
        truth=truth,
        bytes=(passes[0], sum(passes)),
    )


def cross_entropy_cases(small: bool) -> list[Case]:
    """The loss over the vocabulary at the size of the 4B decoder."""
    return [cross_entropy_case(256, 64, 2048, 32) if small else cross_entropy_case(16384, 2560, 151936, 1024)]


def cross_entropy_case(positions: int, width: int, vocabulary: int, chunk: int) -> Case:
    """In tiles of the vocabulary, in chunks of positions that hold as many logits, and with all logits at once."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, positions, width)), jnp.bfloat16)
    table = jnp.asarray(rng.normal(size=(vocabulary, width)) * 0.02, jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocabulary, (1, positions)), jnp.int32)

    def tiled(hidden, table):
        return cross_entropy(hidden, table, targets, chunk=chunk)[0]

    def full(hidden, table, targets=targets):
        logits = overlaid_logits(hidden, table)
        return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], 2)[..., 0]

    def in_chunks(hidden, table, size):
        blocks = [x.reshape(-1, 1, size, *x.shape[2:]) for x in (hidden, targets)]
        return jax.lax.map(jax.checkpoint(lambda pair: full(pair[0], table, pair[1])), blocks).reshape(targets.shape)

    product = 2.0 * positions * width * vocabulary
    return Case(
        kernel="cross_entropy",
        shape=f"{positions} x {width}, vocabulary {vocabulary}, bfloat16",
        arrays=(hidden, table),
        contenders={
            f"tiled (chunk {chunk})": tiled,
            f"chunks of {chunk} positions": functools.partial(in_chunks, size=chunk),
            "all logits at once": full,
        },
        truth=functools.partial(in_chunks, size=min(256, positions)),  # all logits in float32 would not fit
        flops=(product, 3 * product),
    )


_REFERENCE_KEYS = 2048
"""Beyond this many keys the scores of all heads do not fit, and what computes them whole is left out."""


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


def _contenders(segments: jax.Array, parts: int, small: bool) -> dict[str, Function]:
    """Ways to compute a case; ``small``: kernels in the interpreter, whatever they are for."""
    length, both = segments.shape[1], (segments, segments)

    def ours(q, k, v, backend):
        return attention(q, k, v, segments=both, causal=True, backend=backend)

    def interpreted(q, k, v, backend):
        return backend_module(backend).run(q, k, v, both, True, interpret=True)

    found: dict[str, Function] = {"auto": functools.partial(ours, backend="auto")}
    for name, row in ATTENTION_BACKENDS.items():
        if small and not row.quick_to_interpret:
            continue
        if row.cost.block is not None or length <= _REFERENCE_KEYS:
            found[name] = functools.partial(interpreted if small and row.platform else ours, backend=name)
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

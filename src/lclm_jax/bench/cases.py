"""What `lclm bench kernels` compares: a case has inputs, several ways to compute it, and its work by formula."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.kernels.cross_entropy import cross_entropy, overlaid_logits
from lclm_jax.kernels.normed_pooling import Pooling, Scales, normed_pool, reference, traffic

Function = Callable[..., Any]


class Case(NamedTuple):
    """One operation on one shape. Functions take ``arrays`` and return one array."""

    kernel: str
    shape: str
    arrays: tuple[Any, ...]
    contenders: Mapping[str, Function]
    truth: Function
    """In float32; takes ``picked`` arrays."""
    flops: tuple[float, float] = (0.0, 0.0)
    """Floating-point operations that are needed: forward, forward + backward."""
    bytes: tuple[float, float] = (0.0, 0.0)
    """Bytes that must be moved, for operations bound by memory."""
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda arrays: arrays
    """The part of (inputs, or gradients of them) that is checked, where the truth of all would not fit."""
    pick_output: Callable[[Any], Any] = lambda output: output


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
    names = ("reference", "pallas_tpu", "pallas_gpu") if small else ("reference", f"pallas_{platform}")

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
        contenders={name: functools.partial(run, how=options(name)) for name in names},
        truth=truth,
        bytes=(passes[0], sum(passes)),
    )


def cross_entropy_cases(small: bool) -> list[Case]:
    """The loss over the vocabulary at the size of the 4B decoder."""
    return [cross_entropy_case(256, 64, 2048, 32) if small else cross_entropy_case(16384, 2560, 151936, 1024)]


def cross_entropy_case(positions: int, width: int, vocabulary: int, chunk: int, dtype: str = "bfloat16") -> Case:
    """In tiles of the vocabulary, in chunks of positions that hold as many logits, and with all logits at once."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, positions, width)), dtype)
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
        shape=f"{positions} x {width}, vocabulary {vocabulary}, {dtype}",
        arrays=(hidden, table),
        contenders={
            f"tiled (chunk {chunk})": tiled,
            f"chunks of {chunk} positions": functools.partial(in_chunks, size=chunk),
            "all logits at once": full,
        },
        truth=functools.partial(in_chunks, size=min(256, positions)),  # all logits in float32 would not fit
        flops=(product, 3 * product),
    )

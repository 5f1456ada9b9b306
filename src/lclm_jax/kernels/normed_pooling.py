"""The encoder's final norm, pooling, and the adapter's input norm in one pass over the hidden states.

Letters: B encoder rows (each pools its own positions), R positions of a row, N tokens per latent, L = R / N slots of a
row, E width; P = B * R positions and G = B * L groups in all. With ``x`` the residual stream, the arithmetic is::

    y = x * rsqrt(mean(x ** 2) + eps) * scale            every position; float32 until the end
    u = mean of the group's y, or its N states side by side, or the marker's state; zero in gaps
    z = u * rsqrt(mean(u ** 2) + latent_eps) * latent_scale    if there is a latent norm

Bound by memory: ``traffic`` gives the bytes. The kernels read ``x`` once in the forward pass and once in the backward
pass, which saves nothing and computes ``y`` and ``u`` again.
"""

import functools
import importlib
import logging
from typing import NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from lclm_jax.config.registry.pooling_backends import POOLING_BACKENDS
from lclm_jax.errors import LclmError
from lclm_jax.kernels.platform import platform
from lclm_jax.kernels.pooling import pool

_LOG = logging.getLogger(__name__)
RATIOS = (2, 4, 8, 16, 32)
"""N that the kernels are made for."""


class Pooling(NamedTuple):
    """What is computed, and by what. Hashable."""

    kind: str
    """``mean``, ``concat`` or ``eos``."""
    ratio: int
    eps: float
    """Of the norm of the hidden states."""
    latent_eps: float | None = None
    """Of the norm of the pooled states; None: there is none."""
    backend: str = "auto"
    """``reference``, a name of ``POOLING_BACKENDS``, or ``auto``: by the platform that is compiled for."""
    interpret: bool = False
    """Run kernels in Pallas' interpreter, on any platform (tests)."""


class Scales(NamedTuple):
    """Scales of both norms, whatever floats: they are used in float32."""

    hidden_E: jax.Array
    latent_E: jax.Array | None = None
    """[E]; [N * E] for ``concat``."""


class Kernel(Protocol):
    """The module of a kernel; it pools whole groups, of ``mean`` (for ``eos`` of N = 1) or ``concat``.

    ``how`` is a ``Pooling`` of that kind; shapes are x [P, E], shares [G, N], pooled states [G, E] or [G, N * E].
    """

    MULTIPLE: int
    """Groups are padded to a multiple of this."""

    def unsupported_reason(self, width: int) -> str | None:
        """Why it cannot pool states of this width; None: it can."""

    def forward(self, how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales) -> jax.Array:
        """Pooled states."""

    def backward(
        self, how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales, bar_GE: jax.Array
    ) -> tuple[jax.Array, Scales]:
        """(gradient of ``x_PE``, gradients of the scales) from the gradient of the pooled states."""

    def share_bytes(self, groups: int, ratio: int) -> int:
        """Bytes of the shares in memory."""

    def partial_bytes(self, groups: int, ratio: int, width: int, size: int, latent: bool) -> int:
        """Bytes of the scales' partial gradients, written and read."""


def normed_pool(
    how: Pooling, x_BRE: jax.Array, pool_weights_BR: jax.Array, scales: Scales, markers_BL: jax.Array | None = None
) -> jax.Array:
    """Pooled states [B, L, E] (``concat``: [B, L, N * E]) in the dtype of ``x_BRE``, rounded once.

    Args:
        how: kind, ratio, norms and backend.
        x_BRE: residual stream before the final norm, float32 or bfloat16.
        pool_weights_BR: 1 on pooled real tokens, else 0.
        scales: of the norms; ``latent_E`` iff ``how.latent_eps`` is given.
        markers_BL: for ``eos``: position in its row of each slot's marker, int32.

    Raises:
        LclmError: R is not a multiple of N, an unknown kind or backend, markers or a scale missing, or a backend that
            was named and cannot do this.
    """
    if (scales.latent_E is None) != (how.latent_eps is None):
        raise LclmError(f"latent_eps={how.latent_eps} and a latent scale go together; give both or neither")
    how = how._replace(backend=_chosen(how, x_BRE))
    scales = jax.tree.map(lambda scale: scale.astype(jnp.float32), scales)
    if how.backend == "reference":
        return reference(how, x_BRE, pool_weights_BR, scales, markers_BL)
    if how.kind == "concat":  # as wide as the hidden states: nothing is saved by keeping it in the kernel
        pooled_BLE = _by_kernel(how._replace(latent_eps=None), x_BRE, pool_weights_BR, Scales(scales.hidden_E))
        return pooled_BLE if how.latent_eps is None else _norm(pooled_BLE, scales.latent_E, how.latent_eps)
    if how.kind == "eos":  # a norm is of one position: markers are picked first, all other positions never read
        x_BRE, pool_weights_BR = _marker_states(how, x_BRE, pool_weights_BR, markers_BL)
        how = how._replace(ratio=1)
    return _by_kernel(how, x_BRE, pool_weights_BR, scales)


def reference(
    how: Pooling, x_BRE: jax.Array, pool_weights_BR: jax.Array, scales: Scales, markers_BL: jax.Array | None = None
) -> jax.Array:
    """The definition of ``normed_pool``."""
    y_BRE = _norm(x_BRE.astype(jnp.float32), scales.hidden_E, how.eps)
    pooled_BLE = pool(y_BRE[:, None], pool_weights_BR[:, None], how.ratio, how.kind, markers_BL)
    if how.latent_eps is not None:
        pooled_BLE = _norm(pooled_BLE, scales.latent_E, how.latent_eps)
    return pooled_BLE.astype(x_BRE.dtype)


class Traffic(NamedTuple):
    """Bytes of accelerator memory that one call moves."""

    least: int
    """Every input once, every output once."""
    kernel: int
    """What the kernel of the platform moves."""


def traffic(how: Pooling, shape_BRE: tuple[int, int, int], dtype: str, platform: str, backward: bool) -> Traffic:
    """Bytes of a forward or a backward pass over ``shape_BRE``.

    The kernels' surplus: a share per token, which a TPU stores in rows of 128; partial sums of the scales' gradients;
    for ``eos`` the picked states, written and read once more, and the gradient scattered from them; for ``concat`` a
    latent norm of its own.
    """
    rows, positions, width = shape_BRE
    size, slots = jnp.dtype(dtype).itemsize, rows * positions // how.ratio
    picked, ratio = (slots, 1) if how.kind == "eos" else (rows * positions, how.ratio)
    hidden, pooled = picked * width * size, slots * width * size * (how.ratio if how.kind == "concat" else 1)
    names = list(POOLING_BACKENDS)
    module = _module(next((name for name in names if POOLING_BACKENDS[name].platform == platform), names[-1]))
    latent = how.latent_eps is not None
    scales = 4 * width * (1 + (how.ratio if how.kind == "concat" else 1) * latent)
    least = hidden + pooled + scales + 4 * rows * positions + (4 * slots if how.kind == "eos" else 0)
    fused = latent and how.kind != "concat"
    kernel = hidden + pooled + 4 * width * (1 + fused) + module.share_bytes(slots, ratio)
    if backward:
        full = rows * positions * width * size  # the gradient of every position is written
        least += full + scales
        kernel += hidden + module.partial_bytes(slots, ratio, width, size, fused)
    if how.kind == "eos":
        kernel += (full + 3 * hidden if backward else 2 * hidden) + 4 * rows * positions
    if how.kind == "concat" and latent:
        kernel += (3 if backward else 2) * pooled + scales
    return Traffic(least, kernel)


def _marker_states(
    how: Pooling, x_BRE: jax.Array, pool_weights_BR: jax.Array, markers_BL: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(states of the slots' markers [B, L, E], 1 or for gaps 0 [B, L])."""
    if markers_BL is None:
        raise LclmError("pooling eos needs batch.marker_index, which is None; build the batch with the same model")
    full_BL = pool_weights_BR.reshape(*markers_BL.shape, how.ratio).max(-1) > 0
    return jnp.take_along_axis(x_BRE, markers_BL[..., None], axis=1), full_BL.astype(jnp.float32)


def _norm(x_BRE: jax.Array, scale_E: jax.Array | None, eps: float) -> jax.Array:
    assert scale_E is not None
    x_f32 = x_BRE.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True)
    return (x_f32 * jax.lax.rsqrt(mean_square + eps) * scale_E[None, None]).astype(x_BRE.dtype)


def _chosen(how: Pooling, x_BRE: jax.Array) -> str:
    """The backend, ``auto`` resolved; a named one that cannot do it raises."""
    if how.backend not in ("auto", "reference", *POOLING_BACKENDS):
        known = " or ".join(POOLING_BACKENDS)
        raise LclmError(f"pooling backend {how.backend!r} is unknown; use auto, reference, {known}")
    if how.backend == "reference":
        return "reference"
    compiled_for = platform()
    if how.backend == "auto":
        fitting = [
            name
            for name, row in POOLING_BACKENDS.items()
            if row.platform == compiled_for and _unsupported_reason(name, how, x_BRE) is None
        ]
        choice = fitting[0] if fitting else "reference"
        _log_choice(choice, compiled_for, how.kind, how.ratio)
        return choice
    why = _unsupported_reason(how.backend, how, x_BRE)
    if not how.interpret and compiled_for != POOLING_BACKENDS[how.backend].platform:
        why = f"the program is compiled for {compiled_for}"
    if why is not None:
        raise LclmError(f"pooling backend {how.backend!r} cannot do this: {why}; use auto or reference")
    return how.backend


def _unsupported_reason(backend: str, how: Pooling, x_BRE: jax.Array) -> str | None:
    """Why a kernel cannot honour a request; None if it can."""
    if how.ratio not in RATIOS:
        return f"ratio {how.ratio} is not one of {RATIOS}"
    if x_BRE.dtype not in (jnp.float32, jnp.bfloat16):
        return f"hidden states are {x_BRE.dtype}, not float32 or bfloat16"
    return _module(backend).unsupported_reason(x_BRE.shape[2])


@functools.cache
def _module(backend: str) -> Kernel:
    """The module of a kernel, imported when first asked: importing kernels of accelerators takes time."""
    return cast(Kernel, importlib.import_module(POOLING_BACKENDS[backend].code))


@functools.cache
def _log_choice(choice: str, platform: str, kind: str, ratio: int) -> None:
    _LOG.info("pooling: auto takes %s on %s for %s of %d", choice, platform, kind, ratio)


def _by_kernel(how: Pooling, x_BRE: jax.Array, pool_weights_BR: jax.Array, scales: Scales) -> jax.Array:
    """``mean`` (of N = 1 for ``eos``) or ``concat`` of whole groups, padded to what the kernel's blocks hold."""
    rows, positions, width = x_BRE.shape
    if positions % how.ratio:
        raise LclmError(f"encoder rows of {positions} positions are not a multiple of ratio={how.ratio}; change one")
    shares_GN = pool_weights_BR.reshape(-1, how.ratio)
    if how.kind == "mean":
        shares_GN = shares_GN / jnp.maximum(shares_GN.sum(-1, keepdims=True), 1.0)
    groups = shares_GN.shape[0]
    surplus = -groups % _module(how.backend).MULTIPLE
    x_PE = x_BRE.reshape(-1, width)
    if surplus:
        x_PE = jnp.pad(x_PE, ((0, surplus * how.ratio), (0, 0)))
        shares_GN = jnp.pad(shares_GN, ((0, surplus), (0, 0)))
    pooled_GE = _pool_groups(how, x_PE, shares_GN, scales)
    return pooled_GE[:groups].reshape(rows, positions // how.ratio, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool_groups(how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales) -> jax.Array:
    return _module(how.backend).forward(how, x_PE, shares_GN, scales)


def _save(
    how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Scales]]:
    return _pool_groups(how, x_PE, shares_GN, scales), (x_PE, shares_GN, scales)


def _differentiate(
    how: Pooling, saved: tuple[jax.Array, jax.Array, Scales], pooled_bar_GE: jax.Array
) -> tuple[jax.Array, jax.Array, Scales]:
    x_PE, shares_GN, scales = saved
    x_bar_PE, bars = _module(how.backend).backward(how, x_PE, shares_GN, scales, pooled_bar_GE)
    return x_bar_PE, jnp.zeros_like(shares_GN), bars


_pool_groups.defvjp(_save, _differentiate)

"""Attention with segments and grouped heads: one entry, several backends, one meaning.

Letters: B rows, S queries, T keys, H query heads, K key/value heads, G = H / K, d head width. Query ``s`` of row ``b``
sees key ``t`` iff both lie in the same segment, the segment is not 0, and (causal) ``t <= offset_B[b] + s``: causality
is array order, not RoPE position. A query that sees no key returns zeros. For segments ``1 1 2 0``, causal::

    query 0 sees 0 | query 1 sees 0 1 | query 2 sees 2 | query 3 (padding) sees nothing and returns 0

A backend is one module with two functions, and one line in ``config/registry/attention_backends.py``:
``unsupported_reason(request)`` says in a few words why it cannot honour an ``AttentionRequest`` (None: it can), and
``run(q_BSHd, k_BTKd, v_BTKd, segments, causal, offset_B)`` computes it. Kernels of accelerators take ``interpret`` too.
"""

import functools
import importlib
import logging
from typing import Protocol, cast

import jax

from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.errors import LclmError
from lclm_jax.kernels.platform import platform
from lclm_jax.kernels.request import AttentionRequest

_LOG = logging.getLogger(__name__)


class Run(Protocol):
    """The function that computes attention."""

    def __call__(
        self,
        q_BSHd: jax.Array,
        k_BTKd: jax.Array,
        v_BTKd: jax.Array,
        segments: tuple[jax.Array, jax.Array],
        causal: bool,
        offset_B: jax.Array | None = None,
        **options: bool,
    ) -> jax.Array:
        """out_BSHd."""


class Backend(Protocol):
    """The module of a backend."""

    run: Run

    def unsupported_reason(self, request: AttentionRequest) -> str | None:
        """Why it cannot honour ``request``; None: it can."""


def attention(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    *,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Scaled dot-product attention (scale ``d ** -0.5``), softmax in float32.

    Args:
        q_BSHd: queries, float.
        k_BTKd: keys; K divides H and query head h reads key head ``h // (H / K)``.
        v_BTKd: values.
        segments: (q_segments_BS, kv_segments_BT), int32; 0 is padding. Give the same array twice where queries and
            keys are the same positions: some backends can do that only.
        causal: whether array order limits what a query sees.
        offset_B: array order of each row's query 0 among the keys, int32; None is 0 (used with a key/value cache, and
            where the queries are split over devices).
        backend: a name of ``ATTENTION_BACKENDS``, or ``auto``: by platform and request.

    Returns:
        [B, S, H, d] in the queries' dtype.

    Raises:
        LclmError: shapes that do not fit together, an unknown backend, or a named one that cannot honour the request.
    """
    _check(q_BSHd, k_BTKd, v_BTKd, segments)
    request = _request(q_BSHd, k_BTKd, causal, to_itself=segments[0] is segments[1], offset=offset_B is not None)
    name = choose(request) if backend == "auto" else backend
    if name not in ATTENTION_BACKENDS:
        raise LclmError(
            f"attention backend {name!r} is unknown; set model.attention to auto or one of"
            f" {', '.join(ATTENTION_BACKENDS)}"
        )
    module = backend_module(name)
    reason = module.unsupported_reason(request)
    if reason is not None:
        raise LclmError(f"attention backend {name!r} {reason}: {request}; set model.attention to auto")
    return module.run(q_BSHd, k_BTKd, v_BTKd, segments, causal, offset_B)


def choose(request: AttentionRequest) -> str:
    """The backend that ``auto`` takes: the first that can, of those for the request's platform, then of the others."""
    passed_over: list[str] = []
    own = [name for name, row in ATTENTION_BACKENDS.items() if row.platform == request.platform]
    for name in (*own, *(name for name, row in ATTENTION_BACKENDS.items() if row.platform is None)):
        reason = backend_module(name).unsupported_reason(request)
        large = _too_large(name, request)
        if reason is None and large is None:
            _log_choice(name, request.platform, "; ".join(passed_over) or "first choice there")
            return name
        passed_over.append(f"{name} {reason}" if reason is not None else str(large))
    raise LclmError(f"no attention backend can compute {request}: {'; '.join(passed_over)}")


def _too_large(name: str, request: AttentionRequest) -> str | None:
    """What makes a request too large for ``auto`` to take this backend; None: nothing."""
    row = ATTENTION_BACKENDS[name]
    if request.platform == "cpu":
        scores = request.rows * request.heads * request.queries * request.keys
        most = row.auto_max_scores_cpu
        return None if most is None or scores <= most else f"more than {most:,} scores"
    return (
        None
        if row.auto_max_keys is None or request.keys <= row.auto_max_keys
        else f"more than {row.auto_max_keys} keys"
    )


@functools.cache
def backend_module(name: str) -> Backend:
    """The module of a backend, imported when first asked: importing kernels of accelerators takes time."""
    return cast(Backend, importlib.import_module(ATTENTION_BACKENDS[name].code))


@functools.cache
def _log_choice(name: str, platform: str, why: str) -> None:
    """Cached: each choice is logged once in a process, however many shapes lead to it."""
    _LOG.info("attention: auto takes %s on %s (%s)", name, platform, why)


def _request(q_BSHd: jax.Array, k_BTKd: jax.Array, causal: bool, *, to_itself: bool, offset: bool) -> AttentionRequest:
    rows, queries, heads, head_dim = q_BSHd.shape
    keys, kv_heads = k_BTKd.shape[1:3]
    shape, dtype = (rows, queries, keys, heads, kv_heads, head_dim), q_BSHd.dtype.name
    return AttentionRequest(platform(), *shape, dtype, causal=causal, to_itself=to_itself, offset=offset)


def _check(q_BSHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, segments: tuple[jax.Array, jax.Array]) -> None:
    q_segments_BS, kv_segments_BT = segments
    if k_BTKd.shape != v_BTKd.shape or q_BSHd.ndim != 4 or k_BTKd.ndim != 4:
        raise LclmError(
            f"attention got q {q_BSHd.shape}, k {k_BTKd.shape}, v {v_BTKd.shape}; it needs q [B, S, H, d] and equal"
            " k, v [B, T, K, d]"
        )
    if q_BSHd.shape[0] != k_BTKd.shape[0] or q_BSHd.shape[3] != k_BTKd.shape[3] or q_BSHd.shape[2] % k_BTKd.shape[2]:
        raise LclmError(
            f"attention got q {q_BSHd.shape} and k {k_BTKd.shape}; rows and head width must be equal and the key heads"
            " must divide the query heads"
        )
    if q_segments_BS.shape != q_BSHd.shape[:2] or kv_segments_BT.shape != k_BTKd.shape[:2]:
        raise LclmError(
            f"attention got segments {q_segments_BS.shape} and {kv_segments_BT.shape} for q {q_BSHd.shape} and k"
            f" {k_BTKd.shape}; they need one id per query and per key"
        )

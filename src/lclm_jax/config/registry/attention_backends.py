"""The attention backends by name. A new one is a file in ``kernels/`` and a line here (``CONTRIBUTING.md``).

``auto`` takes the first row made for the platform that can do the work, then the first of those for every platform.
"""

from typing import Literal, NamedTuple


class AttentionCost(NamedTuple):
    """Which pairs of queries and keys a backend computes, and how often; the forward pass takes two products each."""

    backward_products: int
    """4 where the weights are stored; 5 recomputes scores once; 7 twice (dq and dk, dv in kernels of their own)."""
    block: int | None
    """Queries and keys of a block; causal programs skip whole blocks above the diagonal. None: nothing is skipped."""


class AttentionRow(NamedTuple):
    """What everything but its own file needs to know of an attention backend."""

    code: str
    """Module with ``unsupported_reason(request)`` and ``run`` (see ``kernels/attention.py``); imported on use."""
    cost: AttentionCost
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """The only platform that it runs on, outside of Pallas' interpreter; None: every platform."""
    auto_max_keys: int | None = None
    """``auto`` takes it up to this many keys; None: any number."""
    auto_max_scores_cpu: int | None = None
    """On a CPU: up to this many scores of all rows and heads instead."""
    quick_to_interpret: bool = True
    """Whether a small shape takes seconds in Pallas' interpreter, so that a CPU can check it by the way."""
    programs: tuple[tuple[str, int], ...] = ()
    """(regular expression that a kernel's name in a compiled program matches, products of all pairs with a head's
    width that this kernel takes); the first that matches counts."""


_FLASH = (("attention_forward", 2), ("attention_dq", 3), ("attention_dkv", 4))
_SPLASH = (
    ("splash_m[hq]a_fwd", 2),
    ("splash_(attention_dq_dkv|m[hq]a_dkv_dq)", 5),
    ("splash_m[hq]a_dq", 3),
    ("splash_m[hq]a_dkv", 4),
)

ATTENTION_BACKENDS: dict[str, AttentionRow] = {
    # One fused block is faster than a loop over few blocks; on a CPU as long as its caches hold the scores.
    "reference": AttentionRow(
        "lclm_jax.kernels.reference_attention", AttentionCost(4, None), auto_max_keys=512, auto_max_scores_cpu=2**21
    ),
    "chunked": AttentionRow("lclm_jax.kernels.chunked_attention", AttentionCost(5, 512)),
    # 7 in rows that are too long for its backward in one kernel.
    "splash": AttentionRow("lclm_jax.kernels.tpu.splash", AttentionCost(5, 1024), "tpu", programs=_SPLASH),
    # Comes before splash once it has been timed on hardware.
    "pallas_tpu": AttentionRow("lclm_jax.kernels.tpu.attention", AttentionCost(7, 256), "tpu", programs=_FLASH),
    "pallas_gpu": AttentionRow("lclm_jax.kernels.gpu.attention", AttentionCost(7, 128), "gpu", programs=_FLASH),
    # Comes before pallas_gpu, which can do all that it can, once a GPU has run it.
    "mosaic_gpu": AttentionRow(
        "lclm_jax.kernels.gpu.mosaic", AttentionCost(7, 128), "gpu", quick_to_interpret=False, programs=_FLASH
    ),
}


def backend_on(platform: str, name: str = "auto") -> str:
    """The backend that ``model.attention=name`` stands for on ``platform`` where lengths are long and divide."""
    if name != "auto":
        return name
    own = [name for name, row in ATTENTION_BACKENDS.items() if row.platform == platform]
    return own[0] if own else "chunked"

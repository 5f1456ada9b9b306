"""JAX's splash attention on TPUs, with segments and padding as ours are.

Splash schedules its blocks from the static mask (causal or full) and masks the segments inside them, so on a packed
row it does the work of the whole triangle.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
    splash_attention_mask_info,
)

from lclm_jax.kernels.platform import device_kind
from lclm_jax.kernels.request import SAVED, AttentionRequest

LANES = 128


def unsupported_reason(request: AttentionRequest) -> str | None:
    """Why splash cannot honour ``request``; None: it can."""
    if request.platform != "tpu":
        return "runs on TPUs only"
    if request.offset:
        return "takes no offset"
    if not request.to_itself:
        return "needs one array of segments for queries and keys, so that every query has a key"
    if request.head_dim not in (64, 128):
        return "takes heads of width 64 or 128"
    if request.dtype not in ("bfloat16", "float32"):
        return "takes bfloat16 or float32"
    if request.queries < 64:
        return "takes at least 64 queries"
    return None


def run(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As ``attention.attention``; ``interpret``: on any platform, slowly."""
    assert offset_B is None and segments[0] is segments[1]
    length, segments_BS = q_BSHd.shape[1], _padded(segments[0])
    size = segments_BS.shape[1]
    blocks = block_sizes(size, q_BSHd.dtype.name, device_kind())
    kernel = _kernel(causal, size, blocks, interpret)
    q_BHSd = _padded(q_BSHd * q_BSHd.shape[3] ** -0.5).swapaxes(1, 2)  # splash leaves the scale to its caller
    k_BKTd, v_BKTd = (_padded(x_BTKd).swapaxes(1, 2) for x_BTKd in (k_BTKd, v_BTKd))

    def row(q_HSd: jax.Array, k_KTd: jax.Array, v_KTd: jax.Array, segments_S: jax.Array) -> jax.Array:
        ids = splash_attention_kernel.SegmentIds(segments_S, segments_S)
        out_HSd = kernel(q_HSd, k_KTd, v_KTd, ids)
        assert isinstance(out_HSd, jax.Array)  # and no residuals
        return out_HSd

    out_BSHd = jax.vmap(row)(q_BHSd, k_BKTd, v_BKTd, segments_BS).swapaxes(1, 2)
    # To splash padding is a segment like others: its queries see its keys. They return zeros and take no gradient.
    return jnp.where((segments_BS != 0)[:, :, None, None], out_BSHd, 0)[:, :length]


def block_sizes(length: int, dtype: str, kind: str) -> splash_attention_kernel.BlockSizes:
    """Blocks as large as fit VMEM (larger ones read keys less often), keys computed in parts of at most 512.

    The fused backward writes a partial gradient of the queries per block of keys, gigabytes at our lengths, so the
    gradients of queries and of keys come from two kernels.
    """
    most = 512 if dtype == "float32" else 1024
    block = _divisor(length, most)
    large = _divisor(length, 2048) if "v6" in kind and dtype == "bfloat16" else block
    large_part, part = _divisor(large, 512), _divisor(block, 512)
    return splash_attention_kernel.BlockSizes(
        block_q=large,
        block_kv=large,
        block_kv_compute=large_part,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=part,
        block_q_dq=block,
        block_kv_dq=block,
    )


def _kernel(
    causal: bool, length: int, blocks: splash_attention_kernel.BlockSizes, interpret: bool
) -> splash_attention_kernel.SplashAttentionKernel:
    """Splash for rows of ``length``.

    It is put together from its schedules as numpy arrays: splash's own constructor makes device arrays, which a
    program compiled for devices that are not there cannot.
    """
    backward = blocks.block_q_dkv  # of the queries' gradient too
    assert backward is not None
    forward, function = _schedule(causal, length // blocks.block_q, False)
    dq, _ = _schedule(causal, length // backward, False)
    dkv, _ = _schedule(causal, length // backward, True)
    order = np.arange(length, dtype=np.int32) if causal else None
    return splash_attention_kernel.SplashAttentionKernel(
        *(info._replace(q_sequence=order) for info in (forward, dq, dkv)),
        block_sizes=blocks,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=SAVED,
        mask_function=function,
        interpret=interpret,
    )


@functools.lru_cache(maxsize=64)
def _schedule(
    causal: bool, blocks: int, by_keys: bool
) -> tuple[splash_attention_mask_info.MaskInfo, Callable[..., jax.Array] | None]:
    """(which pairs of blocks to visit, function of the mask inside them) for every head alike.

    Splash looks at every element of a mask to classify blocks: minutes at 131,072. Which blocks of a triangle are
    empty, full or cut depends on their number alone, so it is shown one with two positions a block.
    """
    kind = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    mask = splash_attention_mask.MultiHeadMask([kind((2 * blocks, 2 * blocks))])
    process = splash_attention_mask_info.process_mask_dkv if by_keys else splash_attention_mask_info.process_mask
    return process(mask, (2, 2))


def _divisor(length: int, most: int) -> int:
    """The largest multiple of 128 that divides ``length`` (itself one) and is at most ``most``."""
    return max(size for size in range(LANES, min(most, length) + 1, LANES) if length % size == 0)


def _padded(x: jax.Array) -> jax.Array:
    """``x`` with axis 1 padded by zeros to a multiple of 128."""
    extra = -x.shape[1] % LANES
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x

"""Every attention backend as one function, in interpret mode where it needs an accelerator, with small blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from lclm_jax.kernels.chunked_attention import chunked_attention
from lclm_jax.kernels.gpu import attention as gpu
from lclm_jax.kernels.gpu.flash import Tiling as GpuTiling
from lclm_jax.kernels.reference_attention import reference_attention
from lclm_jax.kernels.tpu import splash
from lclm_jax.kernels.tpu.attention import Layout, tiled_attention
from lclm_jax.kernels.tpu.grid import Tiling

B, S, H, K, D = 2, 100, 4, 2, 8


def pallas_tpu(q, k, v, segments, causal, offset=None, tiling=None):
    """Two tiles of 16 in a block: blocks of 32, which do not divide S."""
    tiling = tiling or Tiling(q.shape[2] // k.shape[2], 16, 2, 16, 2)
    layout = Layout(tiling, causal, offset is None and q.shape[1] == k.shape[1], interpret=True)
    return tiled_attention(layout, q, k, v, segments, offset)


def pallas_gpu(q, k, v, segments, causal, offset=None):
    """Blocks of 8 to 32, other ones in each kernel: lengths are padded to 32, which does not divide S."""
    layout = gpu.Layout(*(GpuTiling(*blocks, 4, 2) for blocks in ((16, 16), (16, 32), (32, 8))), causal, interpret=True)
    return gpu.blocked_attention(layout, q, k, v, segments, offset)


RUN = {
    "reference": reference_attention,
    "chunked": functools.partial(chunked_attention, block=32),
    "splash": functools.partial(splash.run, interpret=True),
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
}


def arrays(seed, shape=(B, S, H, K, D), dtype=jnp.float32):
    """(q, k, v, weights of the output in the loss); ``shape``: rows, positions, heads, key heads, head width."""
    rng, (rows, length, heads, kv_heads, width) = np.random.default_rng(seed), shape
    shapes = [(rows, length, count, width) for count in (heads, kv_heads, kv_heads, heads)]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@functools.cache
def compiled(name, causal):
    """(output, gradients of q, k, v) of a weighted sum of the output, for (q, k, v, weights, segments)."""

    @jax.jit
    def run(q, k, v, weights, segments):
        def loss(q, k, v):
            out = RUN[name](q, k, v, (segments, segments), causal)
            return (out * weights).sum(), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    return lambda *arguments: [np.asarray(x) for x in run(*arguments)]


def runs(length=S, rows=B):
    """Segment ids [rows, length]: contiguous runs with ids in any order, padding (0) anywhere."""
    cut = st.lists(st.tuples(st.integers(1, length), st.integers(0, 5)), min_size=1, max_size=6)

    def row(cuts):
        ids = np.repeat([segment for _, segment in cuts], [size for size, _ in cuts])
        return np.resize(ids, length).astype(np.int32)

    return st.lists(cut.map(row), min_size=rows, max_size=rows).map(np.stack)


def anything(length=S, rows=B):
    """Segment ids in no order at all, negative ones and big ones too."""
    ids = st.sampled_from([0, 1, 2, 3, 33, -1, -7, 2**31 - 1])
    row = st.lists(ids, min_size=length, max_size=length).map(lambda ids: np.array(ids, np.int32))
    return st.lists(row, min_size=rows, max_size=rows).map(np.stack)

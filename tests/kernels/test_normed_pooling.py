import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.errors import LclmError
from lclm_jax.kernels.normed_pooling import Pooling, Scales, normed_pool, reference, traffic
from lclm_jax.kernels.pooling import pool

ROWS, POSITIONS, WIDTH = 3, 64, 128
KERNELS = ("pallas_tpu", "pallas_gpu")
# kind, N, dtype, latent norm: every N, kind and dtype, at the price of few compilations.
SETTINGS = [
    ("mean", 2, "bfloat16", True),
    ("mean", 4, "float32", False),
    ("mean", 8, "float32", True),
    ("concat", 4, "float32", True),
    ("eos", 16, "bfloat16", True),
]
CASES = [*itertools.product(KERNELS, SETTINGS), ("pallas_tpu", ("mean", 16, "bfloat16", True))]
CASES += [("pallas_gpu", ("mean", 32, "bfloat16", True))]
# The TPU's is unrolled: it takes long to interpret.
CASES += [pytest.param("pallas_tpu", ("mean", 32, "bfloat16", True), marks=pytest.mark.slow)]


def pooling(backend, setting):
    kind, ratio, _, latent = setting
    return Pooling(kind, ratio, 1e-6, 1e-5 if latent else None, backend, interpret=True)


@functools.cache
def runner(backend, setting):
    """Compiled: (x, scales, weights, markers, cotangent) -> (pooled states, gradients of x and scales)."""
    how = pooling(backend, setting)

    def value(x, scales, weights, markers, bar):
        pooled = (reference if backend == "reference" else normed_pool)(how, x, weights, scales, markers)
        return (pooled.astype(jnp.float32) * bar).sum(), pooled

    def run(x, scales, *others):
        (_, pooled), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(x, scales, *others)
        return pooled, gradients

    return jax.jit(run)


def draw(setting, seed, empty=0.3, short=0.3):
    """Inputs with gaps, short tails and real groups."""
    kind, ratio, dtype, latent = setting
    rng = np.random.default_rng(seed)
    slots = POSITIONS // ratio
    counts = np.where(rng.random((ROWS, slots)) < short, rng.integers(1, ratio + 1, (ROWS, slots)), ratio)
    counts[rng.random((ROWS, slots)) < empty] = 0
    weights = (np.arange(ratio) < counts[..., None]).reshape(ROWS, POSITIONS).astype(np.float32)
    wide = WIDTH * (ratio if kind == "concat" else 1)
    x = jnp.asarray(rng.normal(size=(ROWS, POSITIONS, WIDTH)) * rng.choice([0.1, 1, 30]), dtype)
    scales = Scales(rng.normal(size=WIDTH).astype("f"), rng.normal(size=wide).astype("f") if latent else None)
    markers = rng.integers(0, POSITIONS, (ROWS, slots)).astype(np.int32) if kind == "eos" else None
    return x, scales, weights, markers, rng.normal(size=(ROWS, slots, wide)).astype("f")


def assert_close(got, want, dtype):
    tolerance = 2e-5 if dtype == "float32" else 1.5e-2

    def compare(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1e-30, np.abs(b).max()))

    jax.tree.map(compare, got, want)


@pytest.mark.parametrize(("backend", "setting"), CASES, ids=str)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), empty=st.sampled_from([0.0, 0.4, 1.0]), short=st.sampled_from([0.0, 0.5]))
def test_kernels_equal_the_reference_with_gradients(backend, setting, seed, empty, short):
    inputs = draw(setting, seed, empty, short)
    assert_close(runner(backend, setting)(*inputs), runner("reference", setting)(*inputs), setting[2])


@pytest.mark.parametrize(("backend", "setting"), [(backend, SETTINGS[2]) for backend in KERNELS], ids=str)
def test_a_group_moves_no_other_by_a_bit(backend, setting):
    x, scales, weights, markers, bar = draw(setting, 1, empty=0.0)
    run, ratio, group = runner(backend, setting), setting[1], 3
    inside = slice(group * ratio, (group + 1) * ratio)
    changed = np.array(x)
    changed[1, inside] *= np.linspace(-3, 2, ratio)[:, None]
    before, (x_bar, _) = run(x, scales, weights, markers, bar)
    after, (x_bar_after, _) = run(jnp.asarray(changed), scales, weights, markers, bar)
    moved = np.asarray(before != after).any(-1)
    assert moved[1, group] and moved.sum() == 1
    moved = np.asarray(x_bar != x_bar_after).any(-1)
    assert moved[1, inside].any() and moved.sum() == moved[1, inside].sum()


def test_the_reference_is_norm_pool_norm():
    x, scales, weights, _, _ = draw(SETTINGS[2], 0)
    x = np.asarray(x)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scales.hidden_E
    pooled = np.asarray(pool(jnp.asarray(normed[:, None]), jnp.asarray(weights[:, None]), 8, "mean"))
    want = pooled / np.sqrt((pooled**2).mean(-1, keepdims=True) + 1e-5) * scales.latent_E
    got = reference(pooling("reference", SETTINGS[2]), jnp.asarray(x), weights, scales)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_groups_that_fill_no_block_are_padded_for_the_tpu():
    how = Pooling("mean", 4, 1e-6, None, "pallas_tpu", interpret=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20, WIDTH)), jnp.float32)
    scales, weights = Scales(jnp.ones(WIDTH)), jnp.ones((1, 20))
    want = reference(how, x, weights, scales)
    np.testing.assert_allclose(normed_pool(how, x, weights, scales), want, rtol=1e-5, atol=1e-5)


def pallas_calls(program):
    for eqn in program.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
        for inner in (getattr(value, "jaxpr", value) for value in eqn.params.values()):
            yield from pallas_calls(inner) if hasattr(inner, "eqns") else ()


def bytes_of_the_kernels(how, shape, dtype, backward):
    """Operands and results of the Pallas calls in a program, TPU shares as they lie in memory."""

    def run(x, weights, scales):
        return normed_pool(how, x, weights, scales).astype(jnp.float32).sum()

    arrays = (jax.ShapeDtypeStruct(s, d) for s, d in ((shape, dtype), (shape[:2], "float32"), ((shape[2],), "float32")))
    x, weights, scale = arrays
    program = jax.make_jaxpr(jax.grad(run, (0, 2)) if backward else run)(x, weights, Scales(scale, scale)).jaxpr
    call = list(pallas_calls(program))[-1]
    sizes = [(v.aval.shape, v.aval.size * v.aval.dtype.itemsize) for v in (*call.invars, *call.outvars)]
    groups = shape[0] * shape[1] // how.ratio
    lanes = 128 // how.ratio if how.backend == "pallas_tpu" else 1
    return sum(size * (lanes if shape == (groups, how.ratio) else 1) for shape, size in sizes)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("backward", [False, True])
def test_traffic_is_what_the_kernels_take_and_give(backend, backward, monkeypatch):
    platform = backend.removeprefix("pallas_")
    monkeypatch.setattr("lclm_jax.kernels.normed_pooling.platform", lambda: platform)
    how, shape = Pooling("mean", 16, 1e-6, 1e-6, backend), (64, 1024, 1024)
    bytes_ = traffic(how, shape, "bfloat16", platform, backward)
    sums_read_again = 0
    if backward:
        forward = traffic(how, shape, "bfloat16", platform, False).kernel
        sums_read_again = (bytes_.kernel - forward - 2 * 64 * 1024 * 1024) // 2
    assert bytes_of_the_kernels(how, shape, "bfloat16", backward) == bytes_.kernel - sums_read_again
    assert bytes_.least <= bytes_.kernel < 1.06 * bytes_.least


def test_the_least_is_every_input_and_output_once():
    how = Pooling("mean", 4, 1e-6, None)
    least = traffic(how, (2, 8, 128), "float32", "tpu", False).least
    assert least == 4 * (2 * 8 * 128 + 2 * 2 * 128 + 128 + 2 * 8)
    assert traffic(how, (2, 8, 128), "float32", "tpu", True).least == least + 4 * (2 * 8 * 128 + 128)


def test_refusals(monkeypatch):
    x, weights, scales = jnp.ones((1, 8, 96)), jnp.ones((1, 8)), Scales(jnp.ones(96))
    auto = Pooling("mean", 4, 1e-6)
    with pytest.raises(LclmError, match="'pallas_tpu' cannot do this: the program is compiled for cpu"):
        normed_pool(auto._replace(backend="pallas_tpu"), x, weights, scales)
    with pytest.raises(LclmError, match="width 96 is not a multiple of 128"):
        normed_pool(auto._replace(backend="pallas_tpu", interpret=True), x, weights, scales)
    with pytest.raises(LclmError, match="ratio 1 is not one of"):
        normed_pool(auto._replace(backend="pallas_gpu", ratio=1, interpret=True), x, weights, scales)
    with pytest.raises(LclmError, match="backend 'triton' is unknown"):
        normed_pool(auto._replace(backend="triton"), x, weights, scales)
    with pytest.raises(LclmError, match="go together"):
        normed_pool(auto._replace(latent_eps=1e-6), x, weights, scales)
    with pytest.raises(LclmError, match="marker_index"):
        normed_pool(auto._replace(kind="eos", backend="pallas_gpu", interpret=True), x, weights, scales)
    monkeypatch.setattr("lclm_jax.kernels.normed_pooling.platform", lambda: "tpu")
    assert normed_pool(auto, x, weights, scales).shape == (1, 2, 96)  # auto: the reference, where the kernel refuses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.kernels.cross_entropy import Shards, cross_entropy, overlaid_logits
from lclm_jax.parallel import axis_names, logical_shard_map, make_mesh, use_mesh

IDS = (3, 317, 9)
ROWS, LENGTH, WIDTH, VOCABULARY = 4, 12, 8, 400
MESHES = [dict(fsdp=4, tensor=2), dict(replica=2, fsdp=2, context=2)]


@pytest.fixture
def arrays(rng):
    shapes = [(ROWS, LENGTH, WIDTH), (VOCABULARY, WIDTH), (3, WIDTH)]
    hidden, table, memory = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    # Of a memory token, and of columns that the last tile shares with the one before (13 tiles of 31: 372 to 399).
    targets = jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, LENGTH)), jnp.int32)
    targets = targets.at[0, :4].set(jnp.asarray([317, 369, 371, 372]))
    return hidden, table, memory, targets


def full(hidden, table, memory, targets):
    table = table.at[jnp.asarray(IDS)].set(memory)
    logits = jnp.einsum("BSD,VD->BSV", hidden, table, precision="highest")
    lse = jax.nn.logsumexp(logits, -1)
    return lse - jnp.take_along_axis(logits, targets[..., None], 2)[..., 0], lse


def value_and_gradients(run, arrays):
    """Of a loss that weighs both results by position."""
    weights = jnp.linspace(0, 1, ROWS * LENGTH).reshape(ROWS, LENGTH)

    def loss(*leaves):
        nll, lse = run(*leaves, arrays[-1])
        return (nll * weights).sum() + 0.1 * (lse**2 * weights).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arrays[:3])


def ours(chunk, shards=None):
    def run(hidden, table, memory, targets):
        options = dict(chunk=chunk, memory_rows_3D=memory, memory_ids=IDS, shards=shards)
        return cross_entropy(hidden, table, targets, **options)

    return run


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_equals_the_full_one_with_gradients(arrays, chunk):
    got, want = (value_and_gradients(run, arrays) for run in (ours(chunk), full))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)
    table_gradient = np.asarray(got[1][1])
    assert (table_gradient[list(IDS)] == 0).all()  # the table's own memory rows are never used


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("chunk", [1, 100])
def test_a_mesh_computes_what_one_device_does(arrays, sizes, chunk):
    want = value_and_gradients(full, arrays)
    with use_mesh(make_mesh(MeshConfig(**sizes))):
        shards = Shards(logical_shard_map, axis_names("batch", "seq"), axis_names("vocab"), axis_names("param_embed"))
        got = value_and_gradients(ours(chunk, shards), arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


def test_bfloat16_products_and_float32_sums(arrays):
    hidden, *rest = arrays
    nll, lse = ours(4)(hidden.astype(jnp.bfloat16), *rest)
    want = full(hidden, *rest)
    assert nll.dtype == lse.dtype == jnp.float32
    np.testing.assert_allclose(nll, want[0], atol=0.1)

    def gradients(run):
        return jax.jit(jax.grad(lambda *leaves: run(*leaves, rest[-1])[0].sum(), (0, 1)))(hidden, *rest[:2])

    got, want = gradients(lambda hidden, *others: ours(4)(hidden.astype(jnp.bfloat16), *others)), gradients(full)
    for gradient, expected in zip(got, want, strict=True):
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, expected, atol=0.03 * float(jnp.abs(expected).max()))


def test_a_frozen_table_costs_no_gradient(arrays):
    hidden, table, memory, targets = arrays

    def loss(hidden, table, memory):
        return ours(100)(hidden, table, memory, targets)[0].sum()

    def gradients_of_the_table(numbers):
        program = str(jax.make_jaxpr(jax.grad(loss, numbers))(hidden, table, memory))
        after_the_forward_pass = program[program.rindex("custom_vjp_call") :]
        return after_the_forward_pass.count(f"f32[{VOCABULARY},{WIDTH}] = dot_general")

    assert gradients_of_the_table((0, 1, 2)) == 1
    assert gradients_of_the_table((0, 2)) == 0


def temporary_bytes(length, chunk=16, vocabulary=4096):
    shapes = [(1, length, WIDTH), (vocabulary, WIDTH), (1, length)]
    hidden, table, targets = (
        jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, ("float32", "float32", "int32"), strict=True)
    )

    def loss(hidden, table, targets):
        return cross_entropy(hidden, table, targets, chunk=chunk)[0].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, table, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_positions_times_vocabulary():
    short, long = temporary_bytes(64), temporary_bytes(256)
    logits = 4 * 16 * 4096
    assert short < 5 * logits  # all logits of 64 positions: 4 * logits, in several copies
    assert long - short < logits / 2  # hidden states and sums per position alone


def test_logits_are_float32(arrays):
    hidden, table, memory, _ = arrays
    logits = overlaid_logits(hidden.astype(jnp.bfloat16), table, memory, IDS)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[..., 317], jnp.einsum("BSD,D->BS", hidden, memory[1]), atol=0.1)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.kernels.cross_entropy import chunked_cross_entropy, overlaid_logits

IDS = (3, 17, 9)


@pytest.fixture
def arrays(rng):
    hidden, table, memory = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(2, 10, 8), (20, 8), (3, 8)])
    targets = jnp.asarray(rng.integers(0, 20, (2, 10)), jnp.int32).at[0, 0].set(17)
    return hidden, table, memory, targets


def full(hidden, table, memory, targets):
    table = table.at[jnp.asarray(IDS)].set(memory)
    logits = jnp.einsum("BSD,VD->BSV", hidden, table, precision="highest")
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], 2)[..., 0]


@pytest.mark.parametrize(("chunk", "remat"), [(5, True), (4, True), (3, False), (10, False), (64, True)])
def test_equals_the_full_one_with_gradients(arrays, chunk, remat):
    def ours(hidden, table, memory, targets):
        options = dict(chunk=chunk, remat=remat, memory_rows_3D=memory, memory_ids=IDS)
        return chunked_cross_entropy(hidden, table, targets, **options)

    np.testing.assert_allclose(ours(*arrays), full(*arrays), atol=1e-5)
    weights = jnp.linspace(0, 1, 20).reshape(2, 10)
    gradients = [
        jax.jit(jax.grad(lambda *a, run=run: (run(*a) * weights).sum(), (0, 1, 2)))(*arrays) for run in (ours, full)
    ]
    for gradient, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert (np.asarray(gradients[0][1])[list(IDS)] == 0).all()  # the table's own memory rows are never used


def test_scores_of_all_positions_are_never_built(arrays):
    hidden, table, _, targets = arrays

    def loss(hidden, table):
        return chunked_cross_entropy(hidden, table, targets, chunk=5).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, table))
    assert "[2,5,20]" in text and "[2,10,20]" not in text


def test_chunk_of_the_whole_row_does_not_scan(arrays):
    hidden, table, _, targets = arrays
    text = str(jax.make_jaxpr(lambda *a: chunked_cross_entropy(*a, chunk=10))(hidden, table, targets))
    assert "scan" not in text


def test_logits_are_float32(arrays):
    hidden, table, memory, _ = arrays
    logits = overlaid_logits(hidden.astype(jnp.bfloat16), table, memory, IDS)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[..., 17], jnp.einsum("BSD,D->BS", hidden, memory[1]), atol=0.1)

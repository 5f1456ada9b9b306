import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from tests.kernels.backends import RUN, D, H, K

from lclm_jax.kernels.request import SAVED


@pytest.mark.parametrize(
    ("name", "loop", "forward", "backward"),
    [("chunked", "scan[", 2, 2), ("splash", "pallas_call[", 1, 2)],
)
def test_a_saved_attention_runs_no_second_forward(name, loop, forward, backward):
    """Counts the loops or kernels in the traced program; nothing runs. tests/aot counts those of ``pallas_tpu``."""

    def loss(q, k, segments):
        return jnp.sin(RUN[name](jnp.sin(q), k, k, (segments, segments), True)).sum()

    def count(policy):
        step = jax.value_and_grad(jax.checkpoint(loss, policy=policy), (0, 1))
        shapes = [((1, 128, H, D), jnp.float32), ((1, 128, K, D), jnp.float32), ((1, 128), jnp.int32)]
        traced = jax.make_jaxpr(step)(*(jax.ShapeDtypeStruct(*x) for x in shapes)).jaxpr
        used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))  # as compilers do with what nobody reads
        return str(used).count(loop)

    policies = jax.checkpoint_policies
    assert count(policies.nothing_saveable) == 2 * forward + backward
    assert count(policies.save_only_these_names(SAVED)) == forward + backward

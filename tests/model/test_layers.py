import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.model.layers import lookup
from lclm_jax.parallel import make_mesh, use_mesh

DECODER = (("vocab", "param_embed"), ("batch", "seq"))
ENCODER = ("encoder_vocab", "encoder_embed")


@pytest.mark.parametrize(
    "table_axes, token_axes",
    [DECODER, *((ENCODER, (rows, "encoder_seq")) for rows in ("encoder_rows", "encoder_rows_tensor", "batch"))],
    ids=["decoder", "everywhere", "some", "rows"],
)
def test_lookup_and_gradient_equal_those_of_a_plain_table(table_axes, token_axes, rng):
    table_VD = jnp.asarray(rng.normal(size=(6, 16)), jnp.float32)
    tokens_BS = jnp.asarray(rng.integers(0, 6, (8, 4)), jnp.int32)
    weights_BSD = jnp.asarray(rng.normal(size=(8, 4, 16)), jnp.float32)
    with use_mesh(make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))):

        def loss(table_VD):
            x_BSD = lookup(table_VD, tokens_BS, table_axes, token_axes, "float32")
            return (x_BSD * weights_BSD).sum(), x_BSD

        (_, x_BSD), grad_VD = jax.jit(jax.value_and_grad(loss, has_aux=True))(table_VD)
    np.testing.assert_array_equal(x_BSD, table_VD[tokens_BS])
    expected_VD = np.zeros_like(table_VD)
    np.add.at(expected_VD, np.asarray(tokens_BS), weights_BSD)
    np.testing.assert_allclose(grad_VD, expected_VD, rtol=1e-5, atol=1e-6)

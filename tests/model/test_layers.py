import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.model import layers
from lclm_jax.model.layers import lookup
from lclm_jax.parallel import make_mesh, use_mesh

DECODER = (("vocab", "param_embed"), ("batch", "seq"))
ENCODER = ("encoder_vocab", "encoder_embed")


@pytest.mark.parametrize(
    "table_axes, token_axes, sharers",
    [
        (*DECODER, 8),
        (*DECODER, 2),  # of the four devices that hold the table's columns
        (ENCODER, ("encoder_rows", "encoder_seq"), 8),
        (ENCODER, ("encoder_rows", "encoder_seq"), 2),
        (ENCODER, ("encoder_rows_tensor", "encoder_seq"), 8),
        (ENCODER, ("batch", "encoder_seq"), 8),
    ],
    ids=["decoder", "decoder in groups", "everywhere", "everywhere in groups", "some", "rows"],
)
def test_lookup_and_gradient_equal_those_of_a_plain_table(table_axes, token_axes, sharers, rng, monkeypatch):
    monkeypatch.setattr(layers, "SHARERS", sharers)
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


def lookup_work(devices):
    """Rows and elements of a device that a lookup and its gradient gather and scatter, by the traced program."""
    kinds = (jax.sharding.AxisType.Auto,) * 4  # jax 0.11 makes them explicit where nothing is said
    mesh = jax.sharding.AbstractMesh((1, devices, 1, 1), ("replica", "fsdp", "context", "tensor"), axis_types=kinds)
    table_VD, tokens_BS = jax.ShapeDtypeStruct((96, 2048), jnp.float32), jax.ShapeDtypeStruct((devices, 32), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.make_jaxpr(jax.grad(lambda *a: lookup(*a, *DECODER, "bfloat16").astype(jnp.float32).sum()))
        return {
            (equation.primitive.name, equation.invars[1].aval.shape, equation.invars[-1].aval.shape)
            if equation.primitive.name == "scatter-add"
            else (equation.primitive.name, equation.invars[1].aval.shape, equation.outvars[0].aval.shape)
            for equation in every_equation(traced(table_VD, tokens_BS).jaxpr)
            if equation.primitive.name in ("gather", "scatter-add")
        }


def every_equation(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from every_equation(inner)


def test_the_work_of_a_lookup_does_not_grow_with_the_devices():
    work = lookup_work(8)
    assert work == {("gather", (8, 32, 1), (8, 32, 256)), ("scatter-add", (8, 32, 1), (8, 32, 256))}
    assert lookup_work(64) == work == lookup_work(256)
    assert lookup_work(2) != work  # of fewer devices each has more columns, and fewer rows: the same elements


@pytest.mark.parametrize(
    ("devices", "sharers", "near", "far"),
    [
        (8, 8, None, None),
        (4, 2, [[0, 1], [2, 3]], [[0, 2], [1, 3]]),
        (6, 2, [[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]]),
    ],
)
def test_groups_of_a_lookup(devices, sharers, near, far):
    assert layers._groups(devices, sharers) == (near, far)

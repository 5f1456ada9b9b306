import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import axis_names, logical_shard_map, make_mesh, use_mesh


def _centred(x_BSE, scale_E):
    """Minus the mean over all rows, which other devices hold parts of."""
    total = jax.lax.psum(x_BSE.sum((0, 1)), axis_names("batch", "seq"))
    count = x_BSE.shape[0] * x_BSE.shape[1] * jax.lax.psum(1, axis_names("batch", "seq"))
    return x_BSE * scale_E[None, None] - (total / count)[None, None]


def test_equals_the_global_function_and_its_gradient(rng):
    x, scale = jnp.asarray(rng.normal(size=(4, 6, 2)), jnp.float32), jnp.asarray([2.0, 3.0])
    centred = logical_shard_map(_centred, [("batch", "seq", "embed"), ("norm",)], ("batch", "seq", "embed"))

    def loss(x, scale):
        return (centred(x, scale) ** 3).sum()

    def plain(x, scale):
        return ((x * scale[None, None] - x.mean((0, 1), keepdims=True)) ** 3).sum()

    with use_mesh(make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))):
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, scale)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), got, jax.value_and_grad(plain, (0, 1))(x, scale)
    )


def test_pieces_several_results_and_absent_arguments():
    def pieces(x_BSE, absent):
        assert absent is None
        return x_BSE + 1, jnp.asarray(x_BSE.shape)

    with use_mesh(make_mesh(MeshConfig(replica=2, fsdp=2, context=2))):
        run = logical_shard_map(pieces, [("batch", "seq", None), ("batch",)], (("batch", "seq", None), (None,)))
        x, shape = jax.jit(lambda x: run(x, None))(jnp.zeros((4, 6, 2)))
    assert shape.tolist() == [1, 3, 2]
    assert x.sharding.shard_shape(x.shape) == (1, 3, 2)


def test_errors_are_those_of_constrain():
    run = logical_shard_map(lambda x: x, [("batch", "embed")], ("batch", "embed"))
    with pytest.raises(LclmError, match="logical_shard_map needs a mesh"):
        run(jnp.zeros((4, 4)))
    with pytest.raises(LclmError, match=r"'embd' is not in .*; did you mean 'embed'"):
        logical_shard_map(lambda x: x, [("batch", "embed")], ("batch", "embd"))
    with use_mesh(make_mesh(MeshConfig(fsdp=4, context=2))):
        with pytest.raises(LclmError, match=r"axis 'batch' of argument 0 \(6, 4\) has size 6, not a multiple of the 4"):
            run(jnp.zeros((6, 4)))
        with pytest.raises(LclmError, match="has 3 axes and 2 names"):
            run(jnp.zeros((4, 4, 4)))
        with pytest.raises(LclmError, match="2 arguments for in_axes of 1"):
            run(jnp.zeros((4, 4)), None)

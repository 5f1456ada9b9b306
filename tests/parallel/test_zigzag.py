import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.parallel.zigzag import from_zigzag, natural_order, pieces_of, to_zigzag


@pytest.mark.parametrize("context", [2, 4, 8])
def test_every_device_has_an_early_and_a_late_piece(context):
    mesh = make_mesh(MeshConfig(fsdp=-1, context=context))
    rows, size = 8 // context, 3
    positions_BS = np.tile(np.arange(2 * context * size, dtype=np.int32), (rows, 1))
    with use_mesh(mesh):
        there = jax.jit(lambda x: to_zigzag(x, "batch", "seq"))(positions_BS)
        back = jax.jit(lambda x: from_zigzag(to_zigzag(x, "batch", "seq"), "batch", "seq"))(positions_BS)
    assert np.array_equal(back, positions_BS)
    assert np.array_equal(natural_order(jnp.asarray(there), context), positions_BS)
    held = np.asarray(there)[0].reshape(context, 2, size)
    for device in range(context):
        for half, piece in enumerate(pieces_of(device, context)):
            assert np.array_equal(held[device, half], piece * size + np.arange(size))
    pairs = (held + 1).sum((1, 2))  # what the queries of each device see of a causal row of one segment
    assert len(set(pairs.tolist())) == 1


def test_without_context_nothing_happens():
    x = jnp.arange(5)[None]
    assert to_zigzag(x, "batch", "seq") is x  # no mesh
    with use_mesh(make_mesh(MeshConfig(fsdp=8))):
        assert from_zigzag(x, "batch", "seq") is x


def test_positions_that_do_not_divide_are_refused():
    mesh, message = make_mesh(MeshConfig(fsdp=4, context=2)), r"6 positions are no multiple of 4, .* pack.row_length"
    with use_mesh(mesh), pytest.raises(LclmError, match=message):
        to_zigzag(jnp.zeros((4, 6)), "batch", "seq")

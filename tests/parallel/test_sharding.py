import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import (
    ENCODER_ROWS,
    batch_sharding,
    constrain,
    make_mesh,
    params_sharding,
    spec_for,
    use_mesh,
    widest,
)


def test_spec_follows_the_table():
    assert spec_for(("batch", "seq", "embed")) == PartitionSpec(("replica", "fsdp"), "context", None)
    assert spec_for((None, "heads")) == PartitionSpec(None, "tensor")


def test_spec_errors():
    with pytest.raises(LclmError, match=r"'sequence' is not in .*; did you mean 'seq'"):
        spec_for(("batch", "sequence"))
    with pytest.raises(LclmError, match="'heads' and 'mlp' both use mesh axis 'tensor'"):
        spec_for(("heads", "mlp"))


def test_constrain_acts_and_refuses():
    x_BSD = jnp.zeros((4, 6, 2))
    with pytest.raises(LclmError, match="constrain needs a mesh"):
        constrain(x_BSD, "batch", "seq", "embed")
    with use_mesh(make_mesh(MeshConfig(fsdp=4, context=2))):
        placed = jax.jit(lambda x: constrain(x, "batch", "seq", "embed") + 1)(x_BSD)
        assert placed.sharding.shard_shape(x_BSD.shape) == (1, 3, 2)
        with pytest.raises(LclmError, match="has 3 axes and 2 names"):
            constrain(x_BSD, "batch", "seq")
        with pytest.raises(LclmError, match=r"axis 'batch' of array \(6, 6, 2\) has size 6, not a multiple of the 4"):
            constrain(jnp.zeros((6, 6, 2)), "batch", "seq", "embed")
        with pytest.raises(LclmError, match="did you mean 'embed'"):
            constrain(x_BSD, "batch", "seq", "embd")


def test_params_sharding_names_the_leaf_that_does_not_divide():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    axes = {"fc1": {"kernel": ("param_latent", "param_out")}}
    shapes = {"fc1": {"kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32)}}
    assert params_sharding(mesh, axes, shapes)["fc1"]["kernel"].spec == PartitionSpec(("fsdp", "context"), "tensor")
    shapes = {"fc1": {"kernel": jax.ShapeDtypeStruct((6, 6), jnp.float32)}}
    with pytest.raises(LclmError, match="'param_latent' of fc1/kernel"):
        params_sharding(mesh, axes, shapes)


def test_kernels_that_narrow_are_stored_by_rows_where_these_divide():
    mesh, axes = make_mesh(MeshConfig(fsdp=4, tensor=2)), {"kernel": ("layers", "mlp", "param_embed")}

    def stored(rows):
        shapes = {"kernel": jax.ShapeDtypeStruct((3, rows, 8), jnp.float32)}
        return params_sharding(mesh, axes, shapes)["kernel"].spec

    assert stored(16) == PartitionSpec(None, ("tensor", "fsdp", "context"), None)
    assert stored(12) == PartitionSpec(None, "tensor", ("fsdp", "context"))


def test_encoder_rows_are_spread_as_widely_as_they_divide():
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    picked = {size: widest(ENCODER_ROWS, size, mesh) for size in (16, 12, 6, 3)}
    assert picked == {16: "encoder_rows", 12: "encoder_rows_context", 6: "batch", 3: "batch"}
    with pytest.raises(LclmError, match="widest needs a mesh"):
        widest(ENCODER_ROWS, 16)
    assert widest(ENCODER_ROWS, 8, make_mesh(MeshConfig(fsdp=1, context=2, tensor=4))) == "encoder_rows"
    assert widest(ENCODER_ROWS, 4, make_mesh(MeshConfig(fsdp=1, context=2, tensor=4))) == "encoder_rows_tensor"


def test_batch_rows_and_positions():
    mesh = make_mesh(MeshConfig(replica=2))
    assert batch_sharding(mesh).targets.spec == PartitionSpec(("replica", "fsdp"), "context")
    assert batch_sharding(mesh).encoder_tokens.spec == PartitionSpec(("replica", "fsdp"))
    assert batch_sharding(mesh).marker_index is None
    assert batch_sharding(mesh, markers=True).marker_index is not None

"""8-bit products, compiled: the chips that have units for them take them in 8 bits, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lclm_jax.model.quantized import quantized_product
from lclm_jax.parallel import AXES, use_mesh
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.program_cost import count


@pytest.mark.parametrize(("name", "kind"), [("v5e:2x2", "int8"), ("v6e:2x2", "int8"), ("tpu7x:2x2x1", "fp8")])
def test_all_three_products_are_taken_in_8_bits(topology, name, kind):
    pytest.importorskip("qwix")
    devices = topology(name)
    mesh = Mesh(np.asarray(devices).reshape(1, -1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    places = [NamedSharding(mesh, PartitionSpec("fsdp"))] * 2
    shapes = [((len(devices), 1024, 512), jnp.bfloat16), ((512, 2048), jnp.float32)]
    with use_mesh(mesh):
        inputs = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape, place in zip(shapes, places, strict=True)]
        gradient = jax.grad(lambda x, w: jnp.sum(quantized_product(x, w, 1, kind).astype(jnp.float32) ** 2), (0, 1))
        cost = count(parse(jax.jit(gradient).lower(*inputs).compile().as_text()), len(devices))
    assert cost.dot_flops == cost.eight_bit_flops == 3 * 2 * 1024 * 512 * 2048

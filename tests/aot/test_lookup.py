"""The lookup of embeddings and its gradient, compiled: the work of a chip is the same however many there are."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from lclm_jax.model.layers import lookup
from lclm_jax.parallel import AXES, spec_for, use_mesh

TABLE, TOKENS = ("vocab", "param_embed"), ("batch", "seq")
VOCABULARY, WIDTH, LENGTH = 4096, 2048, 8192


def work(devices):
    """(operation, elements) of what a chip sorts, gathers and scatters."""
    mesh = Mesh(np.asarray(devices).reshape(1, -1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    with use_mesh(mesh):
        shapes = [((VOCABULARY, WIDTH), jnp.float32, TABLE), ((len(devices), LENGTH), jnp.int32, TOKENS)]
        shapes.append(((len(devices), LENGTH, WIDTH), jnp.float32, (*TOKENS, "embed")))
        inputs = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, spec_for(axes))) for s, d, axes in shapes]

        def loss(table_VD, tokens_BS, weights_BSD):
            return jnp.sum(lookup(table_VD, tokens_BS, TABLE, TOKENS, "float32") * weights_BSD)

        text = jax.jit(jax.value_and_grad(loss)).lower(*inputs).compile().as_text()
    return {
        (operation, math.prod(map(int, sizes.split(","))))
        for made, operation in re.findall(r" = (.+?) (sort|gather|scatter)\(", text)
        for sizes in re.findall(r"\[([\d,]+)\]", made)
    }


def test_the_work_of_a_chip_does_not_grow_with_the_chips(topology):
    at_8 = work(topology("v5e:2x4"))
    assert at_8 >= {("gather", LENGTH * WIDTH), ("scatter", VOCABULARY * WIDTH // 8)}
    assert work(topology("v5e:8x8")) == at_8
    assert work(topology("v5e:16x16")) == at_8

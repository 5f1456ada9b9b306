import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.kernels.cross_entropy import Shards, overlaid_logits
from lclm_jax.kernels.distillation import Output, Stored, divergence
from lclm_jax.parallel import axis_names, logical_shard_map, make_mesh, use_mesh

IDS = (3, 97, 9)
ROWS, LENGTH, WIDTH, VOCABULARY = 4, 4, 8, 124
TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def outputs():
    """(student, teacher of twice the width)."""
    rng = np.random.default_rng(0)

    def output(width):
        shapes = [(ROWS, LENGTH, width), (VOCABULARY, width), (3, width)]
        return Output(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))

    return output(WIDTH), output(2 * WIDTH)


def full(student, teacher, temperature):
    ours, theirs = (jax.nn.log_softmax(overlaid_logits(*one, IDS) / temperature) for one in (student, teacher))
    return (jnp.exp(theirs) * (theirs - ours)).sum(-1)


def value_and_gradients(run, student, *others):
    weights = jnp.linspace(0, 1, ROWS * LENGTH).reshape(ROWS, LENGTH)
    return jax.jit(jax.value_and_grad(lambda one: (run(one, *others) * weights).sum()))(student)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


def largest(teacher, k):
    return Stored(*reversed(jax.lax.top_k(overlaid_logits(*teacher, IDS), k)))


def test_equals_the_full_one_with_gradients(outputs):
    student, teacher = outputs
    run = functools.partial(divergence, temperature=TEMPERATURE, chunk=1, memory_ids=IDS)  # 16 tiles, the last overlaps
    want = value_and_gradients(functools.partial(full, temperature=TEMPERATURE), *outputs)
    close(value_and_gradients(run, student, teacher), want)
    close(value_and_gradients(run, student, largest(teacher, VOCABULARY)), want)  # all of the teacher's logits
    few = largest(teacher, 5)
    shares = jax.nn.softmax(few.logits_BSK / TEMPERATURE)
    ours = jnp.take_along_axis(jax.nn.log_softmax(overlaid_logits(*student, IDS) / TEMPERATURE), few.ids_BSK, -1)
    np.testing.assert_allclose(run(student, few), (shares * (jnp.log(shares) - ours)).sum(-1), rtol=2e-5)


def test_equal_inputs_have_no_divergence_and_no_gradient(outputs):
    run = functools.partial(divergence, chunk=1, memory_ids=IDS)
    for leaf in jax.tree.leaves(value_and_gradients(run, outputs[0], outputs[0])):
        assert (np.asarray(leaf) == 0).all()


def test_a_mesh_computes_what_one_device_does(outputs):
    student, teacher = outputs
    want = value_and_gradients(functools.partial(full, temperature=TEMPERATURE), student, teacher)
    with use_mesh(make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))):
        shards = Shards(logical_shard_map, axis_names("batch", "seq"), axis_names("vocab"), axis_names("param_embed"))
        run = functools.partial(divergence, temperature=TEMPERATURE, chunk=1, memory_ids=IDS, shards=shards)
        close(value_and_gradients(run, student, teacher), want)
        close(value_and_gradients(run, student, largest(teacher, VOCABULARY)), want)

"""The sharded loss of the 4B decoder, compiled for a slice: what it holds, and what travels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from lclm_jax.kernels.cross_entropy import HIDDEN, OUTPUT_TABLE, POSITIONS, Shards, cross_entropy
from lclm_jax.parallel import AXES, axis_names, logical_shard_map, spec_for, use_mesh

WIDTH, VOCABULARY, LENGTH, CHUNK = 2560, 151936, 16384, 1024
LOGITS = 4 * CHUNK * VOCABULARY


def compiled(devices, sizes, length=LENGTH, frozen=False):
    mesh = Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 4)
    rows = sizes[0] * sizes[1]
    with use_mesh(mesh):
        shards = Shards(logical_shard_map, axis_names("batch", "seq"), axis_names("vocab"), axis_names("param_embed"))

        def loss(hidden, table, targets):
            return cross_entropy(hidden, table, targets, chunk=CHUNK, shards=shards)[0].sum()

        shapes = [((rows, length, WIDTH), jnp.bfloat16, HIDDEN), ((VOCABULARY, WIDTH), jnp.float32, OUTPUT_TABLE)]
        shapes.append(((rows, length), jnp.int32, POSITIONS))
        inputs = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, spec_for(axes))) for s, d, axes in shapes]
        return jax.jit(jax.grad(loss, 0 if frozen else (0, 1))).lower(*inputs).compile()


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4", "v6e:4x4"])
def test_what_a_chip_holds_and_receives(topology, report, name):
    program = compiled(topology(name), (1, 16, 1, 1))
    text, memory = program.as_text(), program.memory_analysis()
    report(f"{name} cross-entropy", peak_mb=memory.peak_memory_in_bytes / 1e6)
    assert memory.peak_memory_in_bytes < 3 * LOGITS
    gathers = re.findall(r"= bf16\[(\d+),2560\]\S* all-gather\(", text)
    assert gathers and all(int(rows) < VOCABULARY / 8 for rows in gathers), "tiles of the table, never the whole"
    assert not re.search(rf"\[{VOCABULARY},{WIDTH}\]", text), "no chip holds the table or its gradient whole"


def test_positions_over_context_and_vocabulary_over_tensor(topology):
    text = compiled(topology("v5p:2x2x4"), (1, 4, 2, 2)).as_text()
    assert not re.search(rf"f32\[\d+,{VOCABULARY}\]", text), "half of the columns each"


def test_a_longer_row_holds_no_more_logits(topology, report):
    short, long = (compiled(topology("v5p:2x2x1"), (1, 4, 1, 1), length).memory_analysis() for length in (8192, 32768))
    hidden = 24576 * WIDTH * 4
    report("growth from 8,192 to 32,768", mb=(long.temp_size_in_bytes - short.temp_size_in_bytes) / 1e6)
    assert long.temp_size_in_bytes - short.temp_size_in_bytes < 2.5 * hidden


def test_a_frozen_table_is_not_reduced(topology):
    text = compiled(topology("v5p:2x2x1"), (1, 4, 1, 1), frozen=True).as_text()
    assert "all-gather" in text and not re.search(r"f32\[\d+,2560\]\S* (all-reduce|reduce-scatter)", text)

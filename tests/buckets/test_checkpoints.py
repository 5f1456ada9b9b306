"""Checkpoints of a small state in a bucket: kept, deleted, damaged, set aside, written anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import CheckpointConfig
from lclm_jax.paths import names_below, to_path
from lclm_jax.train.checkpoints.checkpoint import Checkpoints, DamagedCheckpoint
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.core.state import TrainState


def state(step):
    params = {"layers": {"kernel": jnp.arange(6.0).reshape(2, 3) * step}, "table": jnp.full((8, 4), step, jnp.bfloat16)}
    return TrainState(jnp.int32(step), params, {"mu": params["table"] * 2}, jnp.array([1, step], jnp.uint32))


def abstract():
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(1))


@pytest.fixture
def folder(gcs, request):
    return to_path(f"{gcs[1]}/{request.node.name}/checkpoints")


def test_checkpoints_come_back_and_old_ones_go(folder):
    with Checkpoints(folder, CheckpointConfig(keep_last=2, keep_every=4)) as checkpoints:
        for step in (2, 4, 6, 8, 10):
            checkpoints.save(state(step), step, {"step": step})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 8, 10] and not names_below(folder / "2") and not names_below(folder / "6")
    with Checkpoints(folder) as reader:
        assert reader.latest() == 10 and reader.meta(8)["step"] == 8
        reader.check(8)
        for mine, saved in zip(jax.tree.leaves(reader.restore(8, abstract())), jax.tree.leaves(state(8)), strict=True):
            np.testing.assert_array_equal(mine, saved)
    np.testing.assert_array_equal(LazyCheckpoint(folder / "10").read("layers/kernel", (1,)), [30, 40, 50])


def test_a_damaged_one_is_set_aside_and_written_anew(folder, gcs):
    bucket, _ = gcs
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in (2, 4):
            checkpoints.save(state(step), step, {})
        checkpoints.wait()
        inside = str(folder).removeprefix("gs://corpus/")
        victim = next(name for name in bucket.names() if name.startswith(f"{inside}/4/params/") and "/d/" in name)
        size = names_below(folder / "4")[victim.removeprefix(f"{inside}/4/")]
        bucket.put(victim, b"\0" * size)
        with pytest.raises(DamagedCheckpoint, match=r"the content of params/.* has changed"):
            checkpoints.check(4)
        aside = checkpoints.set_aside(4)
        assert checkpoints.steps() == [2] and checkpoints.latest() == 2 and len(names_below(aside)) > 10
        checkpoints.save(state(4), 4, {})
        checkpoints.wait()
        checkpoints.check(4)
        assert checkpoints.steps() == [2, 4]


def test_what_a_killed_save_left_goes_with_the_next_start(folder):
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(state(2), 2, {})
    (folder / "4" / "params" / "half").write_bytes(b"1")
    with Checkpoints(folder) as reader:
        assert reader.steps() == [2] and names_below(folder / "4")
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [2] and not names_below(folder / "4")
        checkpoints.save(state(4), 4, {})
    with Checkpoints(folder) as reader:
        assert reader.steps() == [2, 4]

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import CheckpointConfig
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.core.state import TrainState

PARAMS = {"adapter": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "encoder": {"scale": np.ones(2, "f4")}}


def saved(folder, opt_state):
    state = TrainState(jnp.int32(3), PARAMS, opt_state, jax.random.key_data(jax.random.key(0)))
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(jax.device_put(state), 3, {"step": 3})
    return folder / "3"


def test_averages_replace_the_leaves_that_have_one(tmp_path):
    folder = saved(tmp_path, {"ema": {"adapter": {"kernel": PARAMS["adapter"]["kernel"] + 10}}, "adapter": {"n": 1}})
    plain, averaged = LazyCheckpoint(folder), LazyCheckpoint(folder, ema=True)
    assert plain.shapes == averaged.shapes == {"adapter/kernel": (2, 3), "encoder/scale": (2,)}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    found = averaged.placed(abstract)
    assert np.array_equal(found["adapter"]["kernel"], PARAMS["adapter"]["kernel"] + 10)
    assert np.array_equal(found["encoder"]["scale"], np.ones(2))
    assert np.array_equal(plain.read("adapter/kernel", (1,)), [3, 4, 5])
    assert np.array_equal(averaged.read("adapter/kernel", (slice(1, 2),)), [[13, 14, 15]])


def test_a_checkpoint_without_averages_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="has no averages"):
        LazyCheckpoint(saved(tmp_path, {"adapter": {"n": 1}}), ema=True)

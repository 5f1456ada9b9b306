import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.config import MeshConfig
from lclm_jax.parallel import make_mesh
from lclm_jax.train.checkpoints import emergency_checkpoint, replicas
from lclm_jax.train.checkpoints.emergency_checkpoint import EmergencyCheckpoints, emergency_checkpoints
from lclm_jax.train.core.state import TrainState


def state_on(mesh, step=5):
    rows, alone = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    table = jax.device_put(jnp.arange(24, dtype=jnp.float32).reshape(8, 3), rows)
    scalar = jax.device_put(jnp.int32(step), alone)
    key = jax.device_put(jnp.array([1, 2], jnp.uint32), alone)
    return TrainState(scalar, {"table": table}, {"mu": table.astype(jnp.bfloat16)}, key)


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


@pytest.fixture
def eight():
    return make_mesh(MeshConfig(fsdp=4, replica=2))


def test_the_newest_copy_comes_back_on_its_mesh_only(tmp_path, eight, caplog):
    copies = EmergencyCheckpoints(tmp_path / "copies")
    assert copies.newest(eight) is None and not EmergencyCheckpoints(None).due(10, 5)
    state = state_on(eight)
    for step in (5, 10):
        copies.save(state, step, {"step": step})
    copies.wait()
    assert copies.newest(eight) == 10 and len(list(tmp_path.rglob("*.safetensors"))) == 1
    restored, meta = copies.restore(10, abstract(state))
    assert meta == {"step": 10}
    same = jax.tree.map(lambda a, b: np.array_equal(a, b) and a.sharding == b.sharding, restored, state)
    assert jax.tree.all(same)
    other = state_on(make_mesh(MeshConfig(fsdp=8)))
    assert copies.restore(10, abstract(other)) is None
    assert "the mesh is another" in caplog.text


def test_a_damaged_copy_is_not_used(tmp_path, eight, caplog):
    copies, state = EmergencyCheckpoints(tmp_path), state_on(eight)
    copies.save(state, 5, {})
    copies.wait()
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    assert copies.restore(5, abstract(state)) is None
    path.write_bytes(content[:100])
    assert copies.restore(5, abstract(state)) is None
    assert "is damaged" in caplog.text and "cannot be used" in caplog.text


def as_one_of_two(monkeypatch, agreed):
    """As if a second process answered; ``agreed``: what it says when it is asked whether it can use its copy."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(emergency_checkpoint, "_all_agree", lambda mine: mine and agreed)
    monkeypatch.setattr(replicas, "processes_of", lambda mesh: [{0, 1}])
    monkeypatch.setattr(emergency_checkpoint, "complete_replica", lambda mesh, mine: None)
    monkeypatch.setattr(
        emergency_checkpoint.multihost_utils, "process_allgather", lambda mine: np.stack([mine, other_steps(mine)])
    )


def other_steps(mine):
    """The second process has the steps of the first but the newest, and one that the first lacks."""
    newest = mine.max()
    return np.sort(np.where(mine == newest, 99, mine))


def test_nothing_that_takes_all_begins_unless_all_can_use_their_copy(tmp_path, eight, monkeypatch):
    state = state_on(eight)
    as_one_of_two(monkeypatch, agreed=False)
    copies = EmergencyCheckpoints(tmp_path)
    copies.save(state, 5, {})
    copies.wait()
    monkeypatch.setattr(emergency_checkpoint, "fingerprint", lambda tree: pytest.fail("the others do not come"))
    assert copies.restore(5, abstract(state)) is None


def test_the_newest_copy_of_all_is_found_and_the_one_before_kept_for_it(tmp_path, eight, monkeypatch):
    as_one_of_two(monkeypatch, agreed=True)
    copies, state = EmergencyCheckpoints(tmp_path), state_on(eight)
    for step in (5, 10, 15):
        copies.save(state, step, {"step": step})
    copies.wait()
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["10", "15"]
    assert copies.newest(eight) == 10 and copies.newest(eight, below=10) is None
    restored, meta = copies.restore(10, abstract(state))
    assert meta == {"step": 10} and np.array_equal(restored.params["table"], state.params["table"])


def test_a_copy_outlasts_a_loss_of_power(tmp_path, eight, monkeypatch):
    synced = []
    monkeypatch.setattr("lclm_jax.files.os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    copies = EmergencyCheckpoints(tmp_path)
    copies.save(state_on(eight), 5, {})
    copies.wait()
    assert synced == [next(tmp_path.iterdir()).stat().st_size]


@pytest.fixture
def run(make_config, tmp_path):
    """``run(folder, name)``: a configuration with local copies."""

    def make(folder="run", name="tiny"):
        config = make_config(train={"checkpoint": {"local_dir": str(tmp_path / "local")}})
        return config.model_copy(update={"run_dir": str(tmp_path / folder), "name": name})

    return make


def test_copies_belong_to_the_folder_of_their_run(run, eight, tmp_path):
    first = emergency_checkpoints(run(), "only", begin=True)
    first.save(state_on(eight), 5, {})
    first.wait()
    assert emergency_checkpoints(run(), "only", begin=True).newest(eight) == 5
    other = emergency_checkpoints(run("elsewhere"), "only", begin=True)
    assert other.newest(eight) is None, "a run of the same name does not take them"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert emergency_checkpoints(run("copy"), "only", begin=True).newest(eight) is None, "nor does a copy of the run"
    assert first.newest(eight) == 5
    shutil.rmtree(tmp_path / "run")
    assert emergency_checkpoints(run(), "only").newest(eight) is None
    anew = emergency_checkpoints(run(), "only", begin=True)
    assert anew.newest(eight) is None, "a run that was deleted is begun anew"
    assert not list((tmp_path / "local").rglob("*.safetensors")), "and its copies go"
    other.delete_all()
    assert not list((tmp_path / "local").rglob("elsewhere"))


def test_copies_go_with_what_was_undone_and_at_the_end(run, eight, tmp_path, monkeypatch, caplog):
    copies = emergency_checkpoints(run(), "only", begin=True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    copies = EmergencyCheckpoints(copies._folder)
    for step in (5, 10):
        copies.save(state_on(eight), step, {})
    copies.delete_after(5)
    assert copies._steps() == [5]
    for name in ("5.process-0-of-4.safetensors", "5.process-1-of-2.safetensors"):
        (copies._folder / name).write_bytes(b"")
    copies.delete_all()
    assert [path.name for path in copies._folder.glob("*.safetensors")] == ["5.process-1-of-2.safetensors"]
    (copies._folder / "5.process-1-of-2.safetensors").unlink()
    copies.delete_all()
    assert not copies._folder.exists()

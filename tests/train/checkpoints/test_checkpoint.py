import errno
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import CheckpointConfig, MeshConfig
from lclm_jax.model.lclm import abstract_params, init_params
from lclm_jax.parallel import make_mesh
from lclm_jax.train.checkpoints import checkpoint
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from lclm_jax.train.core.initial_state import abstract_state, fresh_state, params_shardings
from lclm_jax.train.core.optimizer import make_optimizer

SETTINGS = CheckpointConfig(keep_last=2, keep_every=4)


@pytest.fixture
def setup(make_config):
    """(configuration, optimizer, state on one device)."""
    config = make_config(lr={"adapter": 1e-2})
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config.train.optimizer, config.stages["only"], abstract_params(config.model))
    params = jax.device_put(init_params(config.model, jax.random.key(0)), params_shardings(config.model, one))
    return config, optimizer, fresh_state(params, config.model, optimizer, one, seed=3)


def equal(one, two):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), one, two))


def test_keeps_the_last_and_every_fourth_and_restores_on_another_mesh(setup, tmp_path):
    config, optimizer, state = setup
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(state._replace(step=jnp.int32(step)), step, {"rows_consumed": 8 * step})
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        assert checkpoints.steps() == [4, 6, 7]
        assert checkpoints.meta(7)["rows_consumed"] == 56
        eight = make_mesh(MeshConfig(fsdp=4, tensor=-1, replica=2))
        restored = checkpoints.restore(7, abstract_state(config.model, optimizer, eight))
        assert int(restored.step) == 7 and equal(restored.params, state.params)
        assert equal(restored.opt_state, state.opt_state) and equal(restored.rng, state.rng)
        assert len(restored.params["adapter"]["fc1"]["kernel"].sharding.device_set) == 8
        on_host = checkpoints.restore_params(7, abstract_params(config.model))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host)) and equal(on_host, state.params)


def test_a_save_holds_the_state_of_its_step_while_training_goes_on(setup, tmp_path):
    config, _, state = setup
    donating = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2 + 1, tree), donate_argnums=0)
    before = jax.tree.map(np.array, state.params)
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(state, 1, {})
        params = state.params
        for _ in range(3):
            params = donating(params)
        checkpoints.wait()
        assert equal(checkpoints.restore_params(1, abstract_params(config.model)), before)


def test_stacked_leaves_are_stored_layer_by_layer(setup, tmp_path, monkeypatch):
    monkeypatch.setattr("lclm_jax.train.checkpoints.checkpoint.CHUNK_BYTES", 0)
    _, _, state = setup
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(state, 1, {})
    import tensorstore as ts

    store = {"driver": "ocdbt", "base": f"file://{tmp_path}/1/params"}
    kernel = ts.open({"driver": "zarr", "kvstore": store | {"path": "decoder.layers.mlp.up.kernel/"}}).result()
    assert kernel.chunk_layout.read_chunk.shape[0] == 1
    np.testing.assert_array_equal(
        kernel[1].read().result(), state.params["decoder"]["layers"]["mlp"]["up"]["kernel"][1]
    )


def test_a_nan_is_named(setup, tmp_path):
    config, optimizer, state = setup
    state.params["adapter"]["fc1"]["bias"] = state.params["adapter"]["fc1"]["bias"].at[2].set(jnp.nan)
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(state, 1, {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"not finite in adapter/fc1/bias; delete"):
            checkpoints.restore_params(1, abstract_params(config.model))
        one = make_mesh(MeshConfig(), jax.devices()[:1])
        with pytest.raises(CheckpointError, match=r"not finite in params/adapter/fc1/bias"):
            checkpoints.restore(1, abstract_state(config.model, optimizer, one))


def test_a_full_disk_leaves_the_earlier_checkpoint(setup, tmp_path):
    config, _, state = setup
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(state, 1, {})
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
            with pytest.raises(CheckpointError, match=r"could not be written.*the checkpoint of step 1 is intact"):
                checkpoints.save(state, 2, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        assert checkpoints.steps() == [1]
        assert equal(checkpoints.restore_params(1, abstract_params(config.model)), state.params)


def test_leftovers_of_a_killed_save_are_ignored_and_removed(setup, tmp_path):
    _, _, state = setup
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(state, 1, {})
    leftover = tmp_path / "2.orbax-checkpoint-tmp"
    (leftover / "params").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
    assert leftover.exists()  # opened for reading only
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(state, 2, {})
    assert not leftover.exists()


def test_damaged_or_absent_checkpoints_are_explained(setup, tmp_path):
    config, _, state = setup
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state, step, {})
    for root, _, files in os.walk(tmp_path / "2" / "params"):
        for name in files:
            if "/d" in root:
                open(os.path.join(root, name), "w").close()
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"2 cannot be read .* delete that folder to resume from step 1"):
            checkpoints.restore_params(2, abstract_params(config.model))
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 9; it has: 1, 2"):
            checkpoints.meta(9)
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.latest() is None


def some_file(folder):
    """The largest file of a checkpoint's parameters."""
    return max(
        (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def test_older_checkpoints_go_only_when_the_new_one_is_sealed(setup, tmp_path, monkeypatch):
    _, _, state = setup
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state, step, {})
        checkpoints.wait()

        def fails(folder):
            raise OSError("read error")

        monkeypatch.setattr("lclm_jax.train.checkpoints.checkpoint.write_manifest", fails)
        checkpoints.save(state, 3, {})
        with pytest.raises(CheckpointError, match="read error"):
            checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]


def test_changed_files_and_changed_values_are_found(setup, tmp_path):
    config, optimizer, state = setup
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(state, 1, {})
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.check(1)
        path = some_file(tmp_path / "1")
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpoint, match=r"1 is damaged: the content of params/.* has changed"):
            checkpoints.check(1)
        path.write_bytes(content[:-7])
        with pytest.raises(DamagedCheckpoint, match=r"has \d+ bytes instead of \d+"):
            checkpoints.check(1)
        path.unlink()
        with pytest.raises(DamagedCheckpoint, match="is missing"):
            checkpoints.check(1)
        path.write_bytes(content)
        one = make_mesh(MeshConfig(), jax.devices()[:1])
        abstract = abstract_state(config.model, optimizer, one)
        saved = checkpoints.meta(1)
        saved["fingerprint"]["params/decoder/memory_rows"] += 1
        checkpoints.meta = lambda step: saved
        with pytest.raises(DamagedCheckpoint, match="the values of params/decoder/memory_rows are not those saved"):
            checkpoints.restore(1, abstract)
        assert checkpoints.set_aside(1).name.startswith("damaged-1-") and checkpoints.steps() == []


def test_an_old_checkpoint_that_stays_is_named_and_is_no_failed_save(setup, tmp_path, monkeypatch, caplog):
    _, _, state = setup
    remove = shutil.rmtree
    kept = tmp_path / "deleted-1"

    def busy(path, **options):
        if path == kept:
            remove(path / "params")
            raise OSError(errno.EBUSY, "Device or resource busy", str(path / ".nfs01"))
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", busy)
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(state, step, {})
        checkpoints.wait()
        assert checkpoints.steps() == [4] and kept.is_dir(), "what is left in part does not count, the others go"
    said = f"the old checkpoint {kept} cannot be deleted (Device or resource busy); training goes on"
    assert caplog.text.count(said) == 1
    monkeypatch.setattr(shutil, "rmtree", remove)
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        checkpoints.save(state, 5, {})
    assert not kept.exists(), "tried again"


def test_an_old_checkpoint_that_cannot_be_renamed_stays_whole(setup, tmp_path, monkeypatch, caplog):
    _, _, state = setup
    rename = checkpoint.Path.rename

    def refused(path, target):
        if path.name == "1":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        return rename(path, target)

    monkeypatch.setattr(checkpoint.Path, "rename", refused)
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        for step in range(1, 4):
            checkpoints.save(state, step, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]
        checkpoints.check(1)
    assert f"the old checkpoint {tmp_path / '1'} cannot be deleted (Operation not permitted)" in caplog.text


def test_a_save_that_was_complete_is_only_sealed_when_it_is_tried_again(setup, tmp_path, monkeypatch):
    _, _, state = setup
    write = checkpoint.write_manifest

    def once(folder):
        monkeypatch.setattr(checkpoint, "write_manifest", write)
        raise OSError(errno.EIO, "Input/output error")

    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        monkeypatch.setattr(checkpoint, "write_manifest", once)
        checkpoints.save(state, 1, {})
        with pytest.raises(CheckpointError, match=r"input/output error|Input/output error.*look at the machine's log"):
            checkpoints.wait()
        checkpoints.save(state, 1, {})
        checkpoints.wait()
        assert checkpoint.has_manifest(tmp_path / "1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "(disk quota exceeded); .*: the quota is used up"),
        (ValueError("RESOURCE_EXHAUSTED: writing: No space left on device"), "(disk full); .*: free some space"),
        (ValueError('Error writing "x": Permission denied'), "(permission denied); .*check the path"),
        (RuntimeError("a barrier timed out"), "(a barrier timed out); .*: look at the storage"),
    ],
)
def test_why_a_save_failed_and_what_to_do(tmp_path, error, words):
    checkpoints = Checkpoints(tmp_path / "none")
    with pytest.raises(CheckpointError, match=words.replace("(", r"\(").replace(")", r"\)")):
        checkpoints._failure = error
        checkpoints.folder.mkdir()
        checkpoints.raise_failure()

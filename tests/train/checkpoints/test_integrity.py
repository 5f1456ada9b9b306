import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.config import MeshConfig
from lclm_jax.parallel import make_mesh
from lclm_jax.train.checkpoints import integrity

FILES = {
    "params/ocdbt.process_0/d/a": b"a",
    "params/ocdbt.process_1/d/b": b"bb",
    "rest/ocdbt.process_3/d/c": b"ccc",
    "params/manifest.ocdbt": b"dddd",
    "meta/metadata": b"eeeee",
}


def written(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_each_process_reads_back_its_own_files_and_together_they_are_all(tmp_path):
    folder = written(tmp_path)
    shares = [integrity.read_back(folder, process, 4) for process in range(4)]
    assert [len(share) for share in shares] == [3, 1, 0, 1]
    assert "params/ocdbt.process_0/d/a" in shares[0] and "params/manifest.ocdbt" in shares[0]
    together = {name: entry for share in shares for name, entry in share.items()}
    integrity.write_manifest(folder, together)
    merged = json.loads((folder / integrity.NAME).read_text())
    integrity.write_manifest(folder)
    assert merged == json.loads((folder / integrity.NAME).read_text()) and merged["sha256"].keys() == FILES.keys()


def test_each_process_checks_a_share_and_one_finds_the_fault(tmp_path):
    folder = written(tmp_path)
    integrity.write_manifest(folder)
    assert [integrity.defect(folder, process, 3) for process in range(3)] == [None] * 3
    (folder / "rest/ocdbt.process_3/d/c").write_bytes(b"xxx")
    found = [integrity.defect(folder, process, 3) for process in range(3)]
    assert [one for one in found if one] == ["the content of rest/ocdbt.process_3/d/c has changed"]


def test_sums_on_the_host_are_those_that_devices_make_for_every_sharding():
    mesh = make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])
    values = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    tree = {
        "cut": jax.device_put(values, NamedSharding(mesh, PartitionSpec("fsdp"))),
        "whole": jax.device_put(values, NamedSharding(mesh, PartitionSpec())),
        "half": jnp.asarray(values, jnp.bfloat16),
        "step": jnp.int32(-3),
        "empty": jnp.zeros((0, 4)),
    }
    sums = integrity.fingerprint(tree)
    assert sums == {name: int(value) for name, value in jax.device_get(integrity._sums(tree)).items()}
    assert sums["cut"] == sums["whole"] and sums["step"] == 2**32 - 3
    flipped = values.view(np.uint32) ^ np.eye(8, 12, dtype=np.uint32)
    assert integrity.fingerprint(tree | {"cut": jnp.asarray(flipped.view(np.float32))})["cut"] != sums["cut"]

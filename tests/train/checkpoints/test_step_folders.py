import json

import pytest

from lclm_jax.paths import names_below, to_path
from lclm_jax.train.checkpoints import integrity, step_folders
from lclm_jax.train.checkpoints.step_folders import COMMITTED


@pytest.fixture
def folder(request):
    folder = to_path(f"memory://{request.node.name}/checkpoints")
    for step in (2, 4):
        (folder / str(step) / "params" / "data").write_bytes(b"123")
        (folder / str(step) / COMMITTED).write_text("done")
    (folder / "6" / "params" / "data").write_bytes(b"123")
    return folder


def test_in_a_bucket_a_checkpoint_is_complete_by_its_mark(folder):
    assert step_folders.complete_steps(folder) == [2, 4]
    assert step_folders.complete_steps(folder / "none") == []
    step_folders.prepare(folder)
    assert not names_below(folder / "6") and step_folders.complete_steps(folder) == [2, 4]


def test_a_checkpoint_that_goes_counts_no_more_at_once(folder):
    assert step_folders.withdraw(folder / "2") == folder / "2"
    assert step_folders.complete_steps(folder) == [4]
    step_folders.delete(folder / "2")
    assert not names_below(folder / "2") and step_folders.half_deleted(folder) == []


def test_a_checkpoint_that_is_set_aside_keeps_its_files(folder):
    step_folders.move(folder / "4", folder / "damaged-4")
    assert step_folders.complete_steps(folder) == [2]
    assert sorted(names_below(folder / "damaged-4")) == [COMMITTED, "params/data"]
    step_folders.prepare(folder)
    assert sorted(names_below(folder / "damaged-4")) == [COMMITTED, "params/data"]


def test_the_sums_of_a_store_tell_of_change(folder, monkeypatch):
    step = folder / "2"
    integrity.write_manifest(step)
    assert integrity.has_manifest(step) and integrity.defect(step) is None
    (step / "params" / "data").write_bytes(b"1234")
    assert integrity.defect(step) == "params/data has 4 bytes instead of 3"
    manifest = json.loads((step / integrity.NAME).read_text())
    manifest["stored"]["params/data"] = [4, "md5-of-it"]
    (step / integrity.NAME).write_text(json.dumps(manifest))
    found = type(step.fs).find

    def with_sums(self, path, **options):
        return {name: {**entry, "md5Hash": "md5-of-xx"} for name, entry in found(self, path, **options).items()}

    monkeypatch.setattr(type(step.fs), "find", with_sums)
    assert integrity.defect(step) == "the content of params/data has changed"
    (step / "params" / "data").unlink()
    assert integrity.defect(step) == "params/data is missing"

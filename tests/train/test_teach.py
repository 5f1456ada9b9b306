from pathlib import Path

import jax
import numpy as np
import pytest
from tests.exporting import export_model
from tests.train.core.test_stages import values  # noqa: F401 - a prepared run

from lclm_jax.config import parse_config
from lclm_jax.data.loading import teacher_rows
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.errors import LclmError
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.parallel import make_mesh
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.train.core.initial_state import random_params
from lclm_jax.train.core.starting_params import Start, check_taught, teacher_params
from lclm_jax.train.teach import teach


def test_logits_are_stored_once_for_the_rows_of_a_stage(values, tmp_path, monkeypatch):  # noqa: F811
    def config(**changes):
        distill = {"weight": 0.5, "offline": str(tmp_path / "logits"), "top_k": 300} | changes
        return parse_config(values | {"stages": {"base": values["stages"]["base"] | {"distill": distill}}})

    tokenizers = load_tokenizers(config())
    with pytest.raises(LclmError, match="holds no logits of a teacher; run lclm data teach first"):
        make_loader(config(), "base", tokenizers)
    taught = teach(config(), "base")
    assert taught.rows == 24 and taught.bytes / taught.positions < 300 * 4 + 40
    store = teacher_rows.TeacherStore(tmp_path / "logits")
    kept = store.path(1).read_bytes()
    store.path(1).unlink()
    progress = []
    teach(config(), "base", progress=lambda *done: progress.append(done))
    assert progress == [(1, 1)] and store.path(1).read_bytes() == kept  # the others were there

    with make_loader(config(), "base", tokenizers) as loader:
        batch, _ = loader.maker(1)
    with make_loader(config(offline=None, top_k=None), "base", tokenizers) as loader:
        twins, _ = loader.maker(1)
    there = (twins.loss_weights > 0) & (twins.twin_index >= 0)
    np.testing.assert_array_equal((batch.teacher_logits != 0).any(-1), there)
    ids, logits = batch.teacher_ids[there], batch.teacher_logits[there]
    assert (np.sort(ids) == np.arange(300)).all()  # the whole vocabulary
    assert (np.diff(logits) <= 0).all()
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=5e-3)  # float16

    check_taught(config(), "base")
    with pytest.raises(LclmError, match="holds logits of another teacher"):
        check_taught(config(row_length=128), "base")
    with pytest.raises(LclmError, match="holds 300 logits of a position; set distill"):
        make_loader(config(top_k=5), "base", tokenizers)
    with pytest.raises(LclmError, match="made with another top_k; name another folder"):
        teach(config(top_k=5), "base")
    store.path(1).write_bytes(b"x")
    teacher_rows._file.cache_clear()
    with make_loader(config(), "base", tokenizers) as loader, pytest.raises(LclmError, match="is damaged"):
        loader.maker(1)


@pytest.mark.usefixtures("one_device")
def test_a_folder_teaches(values, tmp_path):  # noqa: F811
    config = resolve(parse_config(values))
    mesh, tokenizer = make_mesh(config.mesh), Path(config.tokenizer.decoder)
    params = jax.device_get(random_params(config.model, 7, mesh))
    folders = {f"{part}_tokenizer": tokenizer for part in ("decoder", "encoder")}
    export_model(params, config.model, tmp_path / "model", **folders)
    distill = {"weight": 0.5, "teacher": str(tmp_path / "model" / "decoder")}
    config = resolve(parse_config(values | {"stages": {"base": values["stages"]["base"] | {"distill": distill}}}))
    assert config.stages["base"].teacher_copied
    found = teacher_params(config, "base", Start(mesh, load_tokenizers(config), imported_params))
    for part in ("layers", "final_norm", "memory_rows"):  # the table of a folder has the memory rows in it
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found)[part], params["decoder"][part])

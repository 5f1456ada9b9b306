"""Import and export: bit-exact per tensor, strict errors, and folders that transformers reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lclm_jax.interop.export import export_model
from lclm_jax.interop.load import load_backbone, load_hf
from lclm_jax.interop.names import flatten
from lclm_jax.interop.tensors import CheckpointError

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "reference" / "checkpoints"


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.glob("*")), ids=lambda p: p.name)
def test_round_trip(folder, tmp_path):
    model, params = load_hf(folder)
    dtype = json.loads((folder / "decoder" / "config.json").read_text())["dtype"]
    export_model(params, model, tmp_path / "out", decoder_tokenizer=folder / "decoder", encoder_tokenizer=folder / "encoder", dtype=dtype, shard_bytes=300_000)
    for part in ("decoder", "encoder", "adapter"):
        want, got = {}, {}
        for f in (folder / part).glob("*.safetensors"): want |= load_file(f)
        for f in (tmp_path / "out" / part).glob("*.safetensors"): got |= load_file(f)
        assert want.keys() == got.keys()
        for n in want:
            assert want[n].dtype == got[n].dtype and want[n].tobytes() == got[n].tobytes(), n
    m2, p2 = load_hf(tmp_path / "out")
    assert m2 == model
    a, b = dict(flatten(params)), dict(flatten(p2))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)

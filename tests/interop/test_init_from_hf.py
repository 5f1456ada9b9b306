"""Runs that start from imported weights: the shards hold what the files hold, and what is frozen comes out again."""

import shutil
import sysconfig
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from lclm_jax.config import BackboneConfig, LoraConfig, LoraTowers, MeshConfig, RunPaths, parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_weight_map import flatten
from lclm_jax.interop.import_hf import import_model
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.interop.load import load_hf
from lclm_jax.interop.runs import export_run
from lclm_jax.interop.safetensors_io import CheckpointError, TensorFolder
from lclm_jax.model.lclm import init_params
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.pipeline import pipeline_steps
from lclm_jax.text.train_tokenizer import train_tokenizer
from lclm_jax.train.checkpoints.checkpoint import CheckpointError as SavedError
from lclm_jax.train.checkpoints.provenance import ChangedConfigError, checkpoints_folder, provenance
from lclm_jax.train.checkpoints.run_params import load_params, open_params
from lclm_jax.train.core.stages import finished, train

SPANS = {"min_tokens": 8, "max_tokens": 16, "raw_min_tokens": 8, "raw_max_tokens": 16}


@pytest.fixture
def lclm(make_tiny, random_params, export, tmp_path):
    """An imported LCLM of bfloat16 weights, with an adapter that has layers."""
    model = make_tiny("attn_mlp", hidden_size=16, vocab_size=304)
    source = export(random_params(model, 0), model, tmp_path / "source", dtype="bfloat16", shard_bytes=20_000)
    import_model(source, tmp_path / "lclm")
    return tmp_path / "lclm"


def values_of(folder, model, run, **init):
    stage = {"lr": {"adapter": 1e-3}, "steps": 1, "batch_rows": 8, "mixture": {"cpt": 1}}
    return {
        "name": "test",
        "run_dir": str(run),
        "tokenizer": {name: str(folder / name) for name in ("decoder", "encoder")},
        "model": model.model_dump(mode="json"),
        "init": init,
        "data": {
            "sources": {"cpt": {"collection": "documents", "objective": "cpt", "max_tokens": 60, "spans": SPANS}},
            "pack": {"row_length": 64, "encoder_rows": 2, "encoder_row_length": 32},
        },
        "stages": {"stage0": stage, "stage1": stage},
    }


@pytest.mark.parametrize(
    ("mesh", "dtype"),
    [(MeshConfig(), "bfloat16"), (MeshConfig(fsdp=2, tensor=2, replica=2), "float32")],
    ids=["fsdp", "all"],
)
def test_shards_hold_what_the_files_hold(lclm, tmp_path, mesh, dtype):
    model, expected = load_hf(lclm, compute_dtype="float32", param_dtype=dtype)
    config = parse_config(values_of(lclm, model, tmp_path, lclm=str(lclm)))
    params = imported_params(config, make_mesh(mesh))
    found, expected = dict(flatten(params)), dict(flatten(expected))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(leaf, expected[path].astype(dtype), err_msg=path)
    q = found["encoder/layers/attn/q/kernel"]
    assert q.addressable_shards[0].data.size * (8 if mesh.fsdp < 0 else 4) == q.size


@pytest.mark.slow
def test_parts_without_a_folder_are_random(lclm, tmp_path):
    model, expected = load_hf(lclm, compute_dtype="float32")
    config = parse_config(values_of(lclm, model, tmp_path, decoder=str(lclm / "decoder")))
    found = imported_params(config, make_mesh(MeshConfig()))
    random = init_params(config.model, jax.random.key(config.seed))
    for part, want in (("decoder", expected), ("encoder", random), ("adapter", random)):
        other = dict(flatten(want[part]))
        for path, leaf in flatten(found[part]):
            np.testing.assert_allclose(leaf, other.pop(path), atol=1e-6, err_msg=f"{part}/{path}")
        assert not other


def test_another_model_or_tokenizer_is_refused(lclm, tmp_path):
    model = load_hf(lclm, compute_dtype="float32")[0]
    values = values_of(lclm, model, tmp_path, lclm=str(lclm))
    mesh = make_mesh(MeshConfig())
    wrong = values["model"] | {"decoder": BackboneConfig(**values["model"]["decoder"] | {"mlp_size": 48}).model_dump()}
    with pytest.raises(CheckpointError, match=r"(?s)another model.*model.decoder.mlp_size=48, the folder has 40"):
        imported_params(parse_config(values | {"model": wrong}), mesh)
    with pytest.raises(CheckpointError, match=r"made with adapter=.*set model.adapter"):
        imported_params(parse_config(values | {"model": values["model"] | {"adapter": {"type": "mlp"}}}), mesh)
    train_tokenizer(["quite another text, with other pairs of letters"], 290, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"have another id in the run's tokenizer .*set tokenizer.decoder to"):
        imported_params(parse_config(values | {"tokenizer": {"decoder": str(tmp_path / "other")}}), mesh)
    with pytest.raises(LclmError, match=r"init.lclm=.*must be null"):
        parse_config(values | {"init": {"lclm": str(lclm), "encoder": "x"}})


@pytest.fixture
def run(lclm, tmp_path):
    """A prepared run of one stage that starts from the import and trains the adapter and a LoRA."""
    (tmp_path / "corpus").mkdir()
    for name in ("bisect.py", "heapq.py", "stat.py"):
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, tmp_path / "corpus" / name)
    corpus = {"kind": "folder", "path": str(tmp_path / "corpus"), "validation_share": 0, "held_out_share": 0}
    lora = LoraTowers(decoder=LoraConfig(rank=2, targets=("q", "o", "down")))
    model = load_hf(lclm, compute_dtype="float32", remat="none")[0].model_copy(update={"lora": lora})
    values = values_of(lclm, model, tmp_path / "run", lclm=str(lclm)) | {"corpus": corpus}
    lr = {"adapter": 1e-3, "decoder_lora": 1e-2}
    stage = values["stages"]["stage0"] | {"lr": lr, "schedule": "constant"}
    config = parse_config(values | {"stages": {"stage0": stage}})
    prepare_corpus(config, tmp_path / "run" / "data")
    return config


@pytest.mark.usefixtures("one_device")
def test_import_train_export(run, lclm, our_logits, tmp_path):
    with pytest.raises(SavedError, match="has no checkpoint; train first"):
        open_params(run)
    with pytest.raises(LclmError, match="no reader was given"):
        train(run)
    train(run, read_imports=imported_params)
    export_run(run, tmp_path / "out", "bfloat16", lora="peft")
    changed = set()
    for part in ("decoder", "encoder", "adapter"):
        first, last = TensorFolder(lclm / part), TensorFolder(tmp_path / "out" / part)
        assert first.shapes == last.shapes
        for name in first.shapes:
            one, other = first.read(name).astype(np.float32), last.read(name).astype(np.float32)
            if name == "model.embed_tokens.weight":  # the rows of the memory tokens are trained
                one, other = (np.delete(table, run.model.memory_token_ids, axis=0) for table in (one, other))
            if not np.array_equal(one, other):
                changed.add(part)
    assert changed == {"adapter"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "test, stage0, step 1, as bfloat16" in card and "| tokens per latent | 4 |" in card
    moved = run.model_copy(update={"init": run.init.model_copy(update={"lclm": "elsewhere"})})
    with pytest.raises(ChangedConfigError, match=r"init\.lclm"):
        finished(moved, "stage0")
    check_slices(run)
    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        check_lora(run, our_logits, tmp_path)
    damage(run)


def test_only_the_first_stage_depends_on_imports(lclm, tmp_path):
    config = parse_config(values_of(lclm, load_hf(lclm)[0], tmp_path, lclm=str(lclm)))
    assert provenance(config, "stage0")["inputs"]["init"]["lclm"] == str(lclm)
    assert "init" not in provenance(config, "stage1")["inputs"]


def check_lora(run, our_logits, tmp_path):
    """Merged by the pipeline, or in a folder that peft loads: the logits of the run."""
    (step,) = [step for step in pipeline_steps(run) if step.name == "export"]
    assert step.run(run) == {"stage": "stage0", "step": 1}
    export_run(run, tmp_path / "peft", lora="peft")
    tokens = np.arange(5, 17)[None]
    want = our_logits(load_params(run), run.model, tokens)
    load = transformers.AutoModelForCausalLM.from_pretrained
    merged, base = load(RunPaths(run).export / "decoder"), load(tmp_path / "peft" / "decoder")
    found = [model(torch.tensor(tokens)).logits.detach().numpy() for model in (merged, base)]
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "peft" / "lora" / "decoder")
    found.append(wrapped(torch.tensor(tokens)).logits.detach().numpy())
    for name, logits in zip(("merged", "base", "peft"), found, strict=True):
        assert (np.abs(logits - want).max() < 1e-4) == (name != "base"), name
    assert "LoRA of the decoder | rank 2" in (RunPaths(run).export / "README.md").read_text()


def check_slices(run):
    """A checkpoint read in pieces is the checkpoint read whole."""
    whole, pieces = dict(flatten(load_params(run))), open_params(run)
    assert pieces.shapes == {path: leaf.shape for path, leaf in whole.items()}
    for path, leaf in whole.items():
        np.testing.assert_array_equal(pieces.read(path), leaf, err_msg=path)
        np.testing.assert_array_equal(pieces.read(path, (slice(1, 2),)), leaf[1:2], err_msg=path)
    head = pieces.read("decoder/layers/mlp/up/kernel", (1,))
    np.testing.assert_array_equal(head, whole["decoder/layers/mlp/up/kernel"][1])


def damage(run):
    """A checkpoint whose data are gone is named, not read as zeros."""
    for path in (checkpoints_folder(run, "stage0") / "1" / "params").rglob("d/*"):
        path.write_bytes(b"")
    with pytest.raises(SavedError, match="cannot be read"):
        open_params(run)

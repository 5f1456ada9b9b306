"""LoRA out of the house: merged, as folders that the peft package loads, and back."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tests.exporting import export_model

from lclm_jax.config import MeshConfig, ModelConfig, parse_config
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_weight_map import flatten, nest
from lclm_jax.interop.import_hf import import_model
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.interop.load import load_hf
from lclm_jax.interop.lora import ExportedLeaves, write_peft
from lclm_jax.interop.param_source import LeavesInMemory
from lclm_jax.interop.runs import export_folder
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.model.encoder import Encoder
from lclm_jax.model.lclm import abstract_params
from lclm_jax.model.lora import is_lora, update_of
from lclm_jax.parallel import make_mesh
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=300, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=40)
LORA = {"decoder": {"rank": 3, "alpha": 7.0}, "encoder": {"rank": 2, "targets": ["q", "o", "down"], "dropout": 0.1}}
KEYS = np.array([[5, 7, 44, 290, 9, 11, 13, 8]], np.int32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a few words to train a tokenizer on, and then a few more words"], 290, folder)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer):
    ids = tuple(Tokenizer(tokenizer).memory_ids)
    towers = dict(encoder=TOWER | {"hidden_size": 16}, decoder=TOWER, lora=LORA)
    return ModelConfig(**towers, ratio=4, window=8, memory_token_ids=ids, compute_dtype="float32", remat="none")


@pytest.fixture(scope="module")
def params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), abstract_params(model))


def without_lora(params):
    return nest({path: leaf for path, leaf in flatten(params) if not is_lora(path)})


def export(params, model, folder, tokenizer, merge):
    leaves = ExportedLeaves(LeavesInMemory(params), model, merge)
    export_model(leaves, model.plain, folder, decoder_tokenizer=tokenizer, encoder_tokenizer=tokenizer)
    return folder


def our_hidden(params, model, tokens):
    positions = jnp.arange(tokens.shape[1])[None, None]
    windows = (jnp.array(tokens)[None], jnp.ones_like(positions), positions)
    return np.asarray(Encoder(model).apply({"params": params["encoder"]}, *windows))[0]


def test_merged_while_it_is_read(model, params, tokenizer, our_logits, tmp_path, mesh):
    leaves = LeavesInMemory(params)
    streamed = ExportedLeaves(leaves, model, merge=True)
    assert streamed.shapes.keys() == {path for path in leaves.shapes if not is_lora(path)}
    for path in streamed.shapes:
        whole, parent = streamed.read(path), path.removesuffix("/kernel")
        if f"{parent}/lora_a" in leaves.shapes:
            np.testing.assert_array_equal(streamed.read(path, (1,)), whole[1], err_msg=path)
            lora = getattr(model.lora, path.split("/")[0])
            update = update_of(lora, leaves.read(f"{parent}/lora_a", (1,)), leaves.read(f"{parent}/lora_b", (1,)))
            np.testing.assert_array_equal(whole[1], leaves.read(path, (1,)) + update, err_msg=path)
        else:
            np.testing.assert_array_equal(whole, leaves.read(path), err_msg=path)
    with pytest.raises(LclmError, match="read by the layer or whole"):
        streamed.read("decoder/layers/attn/q/kernel", (slice(0, 1), slice(2)))
    folder = export(params, model, tmp_path / "out", tokenizer, merge=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder")
    with torch.no_grad():
        want = theirs(torch.tensor(KEYS)).logits.numpy()
    ours = our_logits(params, model, KEYS)
    np.testing.assert_allclose(ours, want, atol=1e-4)
    assert np.abs(our_logits(without_lora(params), model.plain, KEYS) - want).max() > 0.1


def test_peft_loads_both_towers(model, params, tokenizer, our_logits, tmp_path, mesh):
    folder = export(params, model, tmp_path / "out", tokenizer, merge=False)
    write_peft(LeavesInMemory(params), model, folder)
    for tower, kind, ours in (
        ("decoder", transformers.AutoModelForCausalLM, our_logits),
        ("encoder", transformers.AutoModel, our_hidden),
    ):
        base = kind.from_pretrained(folder / tower)
        wrapped = peft.PeftModel.from_pretrained(base, folder / "lora" / tower)
        stored = load_file(folder / "lora" / tower / "adapter_model.safetensors")
        assert set(stored) == set(peft.get_peft_model_state_dict(wrapped))  # none missing, none to spare
        with torch.no_grad():
            out = wrapped(input_ids=torch.tensor(KEYS))
        want = (out.logits if tower == "decoder" else out.last_hidden_state).numpy()
        np.testing.assert_allclose(ours(params, model, KEYS), want, atol=1e-4)
        assert np.abs(ours(without_lora(params), model.plain, KEYS) - want).max() > 0.1


@pytest.fixture
def peft_folder(model, params, tokenizer, tmp_path):
    """A complete LCLM with its LoRA in ``lora/``."""
    folder = export(params, model, tmp_path / "peft", tokenizer, merge=False)
    write_peft(LeavesInMemory(params), model, folder)
    return folder


def check_same(found, params):
    found, params = dict(flatten(found)), dict(flatten(params))
    assert found.keys() == params.keys()
    for path, leaf in params.items():
        if path != "decoder/embed/table":  # its rows of the memory tokens are the leaf memory_rows
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_peft_folders_are_read_back(model, params, peft_folder):
    again, found = load_hf(peft_folder, compute_dtype="float32", remat="none")
    check_same(found, params)
    assert again.lora.decoder == model.lora.decoder
    encoder = again.lora.encoder
    assert (encoder.rank, encoder.dropout, set(encoder.targets)) == (2, 0.1, {"q", "o", "down"})
    assert again.plain == model.plain
    shutil.rmtree(peft_folder / "lora")
    assert load_hf(peft_folder, compute_dtype="float32", remat="none")[0] == model.plain


def test_an_import_keeps_the_updates_and_an_export_of_it_merges_or_keeps_them(params, peft_folder, tmp_path):
    keys = import_model(peft_folder, tmp_path / "lclm")
    assert keys["model"]["lora"]["decoder"]["rank"] == 3
    export_folder(tmp_path / "lclm", tmp_path / "kept", lora="peft")
    check_same(load_hf(tmp_path / "kept")[1], params)
    assert "not merged" in (tmp_path / "kept" / "README.md").read_text()
    export_folder(tmp_path / "lclm", tmp_path / "merged")
    merged, found = load_hf(tmp_path / "merged")
    assert merged.plain == merged and not (tmp_path / "merged" / "lora").exists()
    streamed = ExportedLeaves(LeavesInMemory(params), load_hf(peft_folder)[0], merge=True)
    check_same(found, nest({path: streamed.read(path) for path in streamed.shapes}))
    assert "LoRA of the decoder | rank 3, alpha 7" in (tmp_path / "merged" / "README.md").read_text()
    with pytest.raises(LclmError, match="no LoRA to write"):
        export_folder(tmp_path / "merged", tmp_path / "none", lora="peft")
    assert not list(tmp_path.glob("none*"))


def test_an_adapter_alone_is_no_model(peft_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds a PEFT adapter; merge it .*lora/decoder of the complete LCLM"):
        import_model(peft_folder / "lora" / "decoder", tmp_path / "out", "decoder")
    assert not list(tmp_path.glob("out*"))


def test_runs_start_from_the_updates_of_a_folder(model, params, peft_folder, tmp_path):
    def config(lora):
        shape = model.model_dump(mode="json") | {"lora": lora}
        stage = {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"all": 1}}
        return parse_config(
            {
                "name": "start",
                "run_dir": str(tmp_path / "run"),
                "tokenizer": {"decoder": str(peft_folder / "decoder")},
                "model": shape,
                "init": {"lclm": str(peft_folder)},
                "data": {"sources": {"all": {"collection": "documents", "objective": "cpt"}}},
                "stages": {"only": stage},
            }
        )

    one = make_mesh(MeshConfig(), jax.devices()[:1])
    check_same(imported_params(config(model.model_dump(mode="json")["lora"]), one), params)
    for other in (None, {**LORA, "encoder": {"rank": 2}}):
        with pytest.raises(
            CheckpointError, match=r"lora/\w+ is LoRA of another kind.*, or merge it first: lclm export"
        ):
            imported_params(config(other), one)


def test_errors(model, params, tmp_path):
    bare = LeavesInMemory(without_lora(params))
    with pytest.raises(LclmError, match="no LoRA to write"):
        write_peft(bare, model.plain, tmp_path)
    with pytest.raises(LclmError, match="older than model"):
        write_peft(bare, model, tmp_path)
    older = ExportedLeaves(bare, model, merge=True)
    kernel = params["decoder"]["layers"]["attn"]["q"]["kernel"]
    np.testing.assert_array_equal(older.read("decoder/layers/attn/q/kernel", (0,)), kernel[0])


def test_leaves_of_one_tower_alone_are_written(model, params, tmp_path):
    """As of a checkpoint that is older than the encoder's LoRA."""
    some = {path: leaf for path, leaf in flatten(params) if not (is_lora(path) and path.startswith("encoder"))}
    write_peft(LeavesInMemory(nest(some)), model, tmp_path)
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["decoder"]


def test_damaged_adapter_folders_are_refused(peft_folder):
    source = peft_folder / "lora" / "decoder"
    config, weights = source / "adapter_config.json", source / "adapter_model.safetensors"
    values, tensors = json.loads(config.read_text()), load_file(weights)
    for change, message in (
        ({"use_rslora": True}, r"'use_rslora': True.*merge that adapter with peft"),
        ({"r": 4}, r"lora_A.weight has shape \(3, .*not \(4,"),
        ({"target_modules": ["embed_tokens"]}, r"adapter_config\.json: targets=\(\): "),
        ({"lora_alpha": None}, r"adapter_config\.json: alpha=None: "),
    ):
        config.write_text(json.dumps(values | change))
        with pytest.raises(CheckpointError, match=message):
            load_hf(peft_folder)
    config.write_text(json.dumps(values))
    first = sorted(tensors)[0]
    save_file(tensors | {first: np.full_like(tensors[first], np.nan)}, weights)
    with pytest.raises(CheckpointError, match=f"{first} holds NaN"):
        load_hf(peft_folder)
    tensors.pop(first)
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"has shape None, not .*\(1 such tensors\)"):
        load_hf(peft_folder)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*adapter_config\.json"):
        load_hf(peft_folder)

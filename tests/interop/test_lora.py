"""LoRA out of the house: merged, as folders that the peft package loads, and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.interop.export import export_model
from lclm_jax.interop.leaves import LeavesInMemory
from lclm_jax.interop.lora import ExportedLeaves, merge_lora, read_peft, write_peft
from lclm_jax.interop.names import flatten, nest
from lclm_jax.interop.tensors import CheckpointError
from lclm_jax.model.encoder import Encoder
from lclm_jax.model.lclm import abstract_params, decode, embed, logits
from lclm_jax.model.lora import is_lora
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


def our_logits(params, model):
    batch = Batch(*[None] * len(Batch._fields))._replace(decoder_tokens=jnp.array(KEYS))
    positions = jnp.arange(KEYS.shape[1])[None]
    hidden = decode(params, model, embed(params, model, batch), jnp.ones_like(positions), positions)
    return np.asarray(logits(params, model, hidden))


def our_hidden(params, model):
    positions = jnp.arange(KEYS.shape[1])[None, None]
    windows = (jnp.array(KEYS)[None], jnp.ones_like(positions), positions)
    return np.asarray(Encoder(model).apply({"params": params["encoder"]}, *windows))[0]


def test_merged_while_it_is_read(model, params, tokenizer, tmp_path, mesh):
    merged, plain = merge_lora(params, model)
    streamed = ExportedLeaves(LeavesInMemory(params), model, merge=True)
    assert streamed.shapes == {path: leaf.shape for path, leaf in flatten(merged)}
    for path, leaf in flatten(merged):
        np.testing.assert_array_equal(streamed.read(path), leaf, err_msg=path)
        np.testing.assert_array_equal(streamed.read(path, (1,)), leaf[1], err_msg=path)
    with pytest.raises(ValueError, match="read by the layer or whole"):
        streamed.read("decoder/layers/attn/q/kernel", (slice(0, 1), slice(2)))
    folder = export(params, model, tmp_path / "out", tokenizer, merge=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder")
    with torch.no_grad():
        want = theirs(torch.tensor(KEYS)).logits.numpy()
    ours = our_logits(params, model)
    np.testing.assert_allclose(ours, want, atol=1e-4)
    assert np.abs(our_logits(without_lora(params), plain) - want).max() > 0.1


def test_peft_loads_both_towers(model, params, tokenizer, tmp_path, mesh):
    folder = export(params, model, tmp_path / "out", tokenizer, merge=False)
    write_peft(params, model, folder)
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
        np.testing.assert_allclose(ours(params, model), want, atol=1e-4)
        assert np.abs(ours(without_lora(params), model.plain) - want).max() > 0.1


def test_peft_round_trip(model, params, tmp_path):
    write_peft(params, model, tmp_path)
    again, found = read_peft(tmp_path, model.plain, without_lora(params))
    assert again == model.model_copy(update={"lora": again.lora})
    assert {t: getattr(again.lora, t).rank for t in LORA} == {"decoder": 3, "encoder": 2}
    assert again.lora.decoder == model.lora.decoder
    assert (again.lora.encoder.dropout, set(again.lora.encoder.targets)) == (0.1, {"q", "o", "down"})
    assert dict(flatten(found)).keys() == dict(flatten(params)).keys()
    for path, leaf in flatten(params):
        np.testing.assert_array_equal(dict(flatten(found))[path], leaf, err_msg=path)
    assert read_peft(tmp_path / "nothing", model.plain, params)[0] == model.plain


def test_errors(model, params, tmp_path):
    with pytest.raises(ValueError, match="no LoRA to write"):
        write_peft(without_lora(params), model.plain, tmp_path)
    with pytest.raises(ValueError, match="older than model"):
        write_peft(without_lora(params), model, tmp_path)
    older = ExportedLeaves(LeavesInMemory(without_lora(params)), model, merge=True)
    kernel = params["decoder"]["layers"]["attn"]["q"]["kernel"]
    np.testing.assert_array_equal(older.read("decoder/layers/attn/q/kernel", (0,)), kernel[0])
    write_peft(params, model, tmp_path)
    config, weights = (tmp_path / "lora" / "decoder" / n for n in ("adapter_config.json", "adapter_model.safetensors"))
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"use_rslora": True}))
    with pytest.raises(CheckpointError, match=r"'use_rslora': True.*merge that adapter with peft"):
        read_peft(tmp_path, model.plain, without_lora(params))
    config.write_text(json.dumps(values | {"r": 4}))
    with pytest.raises(CheckpointError, match=r"lora_A.weight has shape \(3, .*not \(4,"):
        read_peft(tmp_path, model.plain, without_lora(params))
    config.write_text(json.dumps(values))
    tensors = load_file(weights)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"has shape None, not .*\(1 such tensors\)"):
        read_peft(tmp_path, model.plain, without_lora(params))

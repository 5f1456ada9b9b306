"""Import and export: bit-exact per tensor, strict errors, and folders that transformers reads with equal logits."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_config import read_backbone
from lclm_jax.interop.hf_weight_map import flatten, tensor_table
from lclm_jax.interop.load import load_hf, open_backbone
from lclm_jax.interop.param_source import LeavesInFolders
from lclm_jax.interop.safetensors_io import CheckpointError, TensorFolder
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.tokenizer import Tokenizer

KINDS = {
    "qwen3-tied": {},
    "qwen3-untied": {"tie_embeddings": False, "rope_theta": 5e6, "norm_eps": 1e-5},
    "llama": {"qk_norm": False, "rope_theta": 1e5},
}
ADAPTERS = [("mlp", "mean"), ("attn_mlp", "mean"), ("mlp_attn", "mean"), ("mlp", "concat")]


@pytest.mark.parametrize(("adapter", "pooling"), ADAPTERS)
def test_the_table_covers_every_leaf(make_tiny, adapter, pooling):
    model = make_tiny(adapter, pooling, tie_embeddings=False)
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(model))}
    named = {}
    for tensor in tensor_table(model):
        layers = () if tensor.layer is None else (tensor.layer + 1,)
        named[tensor.path] = (*layers, *tensor.our_shape)
    del shapes["decoder/memory_rows"]
    assert named == shapes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("adapter", "pooling"), ADAPTERS)
def test_round_trip_is_bit_exact(make_tiny, random_params, export, tmp_path, adapter, pooling, dtype):
    model = make_tiny(adapter, pooling, tie_embeddings=pooling == "mean")
    first = export(random_params(model, 0), model, tmp_path / "first", dtype=dtype)
    loaded_model, loaded = load_hf(first, compute_dtype="float32")
    assert loaded_model == model
    second = export(loaded, model, tmp_path / "second", dtype=dtype, shard_bytes=20_000)
    assert len(list((second / "decoder").glob("*.safetensors"))) > 1
    for part in ("decoder", "encoder", "adapter"):
        one, other = TensorFolder(first / part), TensorFolder(second / part)
        assert one.shapes == other.shapes
        for name in one.shapes:
            left, right = one.read(name), other.read(name)
            assert left.dtype == right.dtype
            assert left.tobytes() == right.tobytes()
    again = dict(flatten(load_hf(second)[1]))
    for path, leaf in flatten(loaded):
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_decoder(make_tiny, random_params, export, tokenizer, our_logits, tmp_path, mesh, kind):
    model = make_tiny(**KINDS[kind])
    params = random_params(model, 1)
    folder = export(params, model, tmp_path / "out")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == ("LlamaForCausalLM" if kind == "llama" else "Qwen3ForCausalLM")
    start, end, placeholder = model.memory_token_ids
    tokens = np.array([[5, 7, start, placeholder, end, 9, 290, 11]], np.int32)
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(our_logits(params, model, tokens), want, atol=1e-4)
    ids = transformers.AutoTokenizer.from_pretrained(folder / "decoder")("few words<|memory_start|>")["input_ids"]
    assert ids == Tokenizer(tokenizer).encode("few words<|memory_start|>").tolist()


@pytest.mark.parametrize("kind", ["qwen3-tied", "llama"])
def test_transformers_reads_the_encoder(make_tiny, random_params, export, tmp_path, kind):
    model = make_tiny()
    model = model.model_copy(update={"encoder": model.encoder.model_copy(update=KINDS[kind])})
    folder = export(random_params(model, 1), model, tmp_path / "out")
    theirs, info = transformers.AutoModel.from_pretrained(folder / "encoder", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == ("LlamaModel" if kind == "llama" else "Qwen3Model")
    assert theirs.config.rope_parameters["rope_theta"] == model.encoder.rope_theta


def test_a_causal_folder_serves_as_either_tower(make_tiny, random_params, export, tmp_path):
    model = make_tiny(tie_embeddings=False)
    folder = export(random_params(model, 2), model, tmp_path / "out") / "decoder"
    backbone = read_backbone(folder)
    assert backbone == model.decoder
    encoder, decoder = (LeavesInFolders([open_backbone(folder, backbone, role)], ()) for role in ("encoder", "decoder"))
    assert not any("head" in path for path in encoder.shapes)
    assert decoder.shapes["decoder/head/kernel"] == (24, 300)


@pytest.fixture
def exported(make_tiny, random_params, export, tmp_path):
    model = make_tiny()
    return export(random_params(model, 3), model, tmp_path / "out")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_every_difference_is_named(exported):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.extra"] = np.ones(3, np.float32)
        tensors["model.embed_tokens.weight"] = np.ones((2, 24), np.float32)

    edit(exported / "decoder", change)
    with pytest.raises(CheckpointError) as error:
        load_hf(exported)
    for text in (
        "missing model.norm.weight (24,)",
        "unexpected model.extra (3,)",
        "has shape (2, 24), the configuration says (300, 24)",
    ):
        assert text in str(error.value)


def test_values_that_are_not_finite_are_refused(exported):
    edit(exported / "encoder", lambda tensors: tensors["norm.weight"].fill(np.nan))
    with pytest.raises(CheckpointError, match=r"norm\.weight holds NaN"):
        load_hf(exported)


def test_a_tied_head_must_be_the_table(exported):
    edit(exported / "decoder", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    load_hf(exported)
    edit(exported / "decoder", lambda tensors: tensors["lm_head.weight"].fill(1))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_hf(exported)


def test_pickles_are_refused_unread(exported):
    (exported / "decoder" / "model.safetensors").rename(exported / "decoder" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\).*run any code"):
        load_hf(exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "rotary scaling 'yarn'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3"),
    ],
)
def test_unsupported_configurations_are_named(exported, change, message):
    path = exported / "decoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_hf(exported)


def test_both_styles_of_rotary_base_are_read(exported):
    path = exported / "decoder" / "config.json"
    values = json.loads(path.read_text())
    want = load_hf(exported)[0]
    for dropped in ("rope_theta", "rope_parameters"):
        path.write_text(json.dumps({name: value for name, value in values.items() if name != dropped}))
        assert load_hf(exported)[0] == want


def test_damaged_files_are_named(exported):
    path = exported / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_hf(exported)


def test_an_index_that_lies_is_refused(make_tiny, random_params, export, tmp_path):
    model = make_tiny()
    params = random_params(model, 0)
    folder = export(params, model, tmp_path / "out", shard_bytes=20_000) / "decoder"
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file of that folder"):
        load_hf(tmp_path / "out")


def test_export_refuses_what_it_would_lose(make_tiny, random_params, export, tmp_path):
    model = make_tiny()
    params = random_params(model, 0)
    with pytest.raises(LclmError, match="float64"):
        export(params, model, tmp_path / "a", dtype="float64")
    small = model.model_copy(update={"decoder": model.decoder.model_copy(update={"vocab_size": 100})})
    with pytest.raises(LclmError, match=r"decoder/embed/table has shape \(300, 24\), not \(100, 24\)"):
        export(params, small, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("x")
    with pytest.raises(LclmError, match="not an export"):
        export(params, model, tmp_path / "c")
    assert (tmp_path / "c" / "thesis.txt").exists()

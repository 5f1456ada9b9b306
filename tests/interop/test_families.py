"""Foreign families and rotary scalings: logits equal to transformers', in, through an export, and back."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from lclm_jax.config import MeshConfig, ModelConfig
from lclm_jax.interop.hf_config import backbone_json, read_backbone
from lclm_jax.interop.hf_weight_map import nest
from lclm_jax.interop.import_hf import import_model
from lclm_jax.interop.load import _read_all, load_hf, open_backbone
from lclm_jax.interop.param_source import LeavesInFolders
from lclm_jax.model.encoder import Encoder
from lclm_jax.model.functional import rope_tables
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.text.tokenizer import Tokenizer

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40)
SIZES |= dict(vocab_size=300, max_position_embeddings=256, tie_word_embeddings=False, rms_norm_eps=1e-5)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
CASES = {
    "llama3": ("Llama", dict(head_dim=16, rope_parameters=LLAMA3 | dict(original_max_position_embeddings=32))),
    "llama": ("Llama", dict(head_dim=6, tie_word_embeddings=True)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-yarn": ("Qwen2", dict(rope_parameters=YARN)),
    "mistral": ("Mistral", dict(head_dim=8, sliding_window=None)),
    "mistral-long": ("Mistral", dict(head_dim=8, sliding_window=256)),
    "linear": ("Llama", dict(head_dim=8, rope_parameters=dict(rope_type="linear", factor=3.0))),
    "qwen3-yarn": ("Qwen3", dict(head_dim=16, rope_parameters=YARN | dict(attention_factor=1.3, beta_fast=8.0))),
    "yarn-mscale": (
        "Llama",
        dict(head_dim=16, rope_parameters=YARN | dict(mscale=1.2, mscale_all_dim=0.7, truncate=False)),
    ),
}


def config_of(case):
    kind, changes = CASES[case]
    return getattr(transformers, f"{kind}Config")(**SIZES | dict(rope_theta=500.0) | changes)


@pytest.fixture
def release(tokenizer, tmp_path):
    """``release(case)``: a tiny random model of transformers in a folder, biases and norms random as well."""

    def save(case):
        torch.manual_seed(0)
        model = getattr(transformers, f"{CASES[case][0]}ForCausalLM")(config_of(case))
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.normal_(0.0, 0.3) if "norm" not in name else value.normal_(1.0, 0.1)
        model.save_pretrained(tmp_path / "source")
        for path in tokenizer.iterdir():
            (tmp_path / "source" / path.name).write_bytes(path.read_bytes())
        return tmp_path / "source"

    return save


def theirs(folder, tokens, kind=transformers.AutoModelForCausalLM):
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert not set(info["unexpected_keys"]) - {"lm_head.weight"}
    with torch.no_grad():
        out = model(torch.tensor(tokens))
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


@pytest.mark.parametrize("case", CASES)
def test_rotary_tables_are_those_of_transformers(case, tmp_path):
    config = config_of(case)
    config.architectures = [f"{CASES[case][0]}ForCausalLM"]
    config.save_pretrained(tmp_path)
    positions = np.arange(200)[None]
    model = getattr(transformers, f"{CASES[case][0]}Model")(config)
    wanted = model.rotary_emb(torch.zeros(1), torch.tensor(positions))
    backbone = read_backbone(tmp_path)
    found = rope_tables(positions, backbone.head_dim, backbone.rope_theta, backbone.rope_scaling)
    for want, got in zip(wanted, found, strict=True):
        np.testing.assert_allclose(np.asarray(got)[0], want.numpy()[0, :, : backbone.head_dim // 2], atol=3e-5)
    # What is written is read as the same, here and there.
    values = backbone_json(backbone, True, "float32", {})
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_backbone(tmp_path) == backbone
    again = getattr(transformers, f"{values['architectures'][0].removesuffix('ForCausalLM')}Model")
    theirs = again(transformers.AutoConfig.from_pretrained(tmp_path)).rotary_emb(
        torch.zeros(1), torch.tensor(positions)
    )
    for want, got in zip(wanted, theirs, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("case", ["llama3", "qwen2-yarn", "mistral"])
def test_logits_are_those_of_transformers(case, release, tokenizer, export, our_logits, random_params, tmp_path):
    source = release(case)
    tokens = np.random.default_rng(1).integers(0, 280, (2, 90))
    expected = theirs(source, tokens)
    ids = Tokenizer(tokenizer).memory_ids
    towers, params = {}, {}
    for role in ("decoder", "encoder"):
        import_model(source, tmp_path / role, role)
        towers[role] = read_backbone(tmp_path / role)
        blocks = open_backbone(tmp_path / role, towers[role], role)
        params |= nest(_read_all(LeavesInFolders([blocks], ids), blocks.table))
    model = ModelConfig(**towers, ratio=4, window=128, memory_token_ids=tuple(ids), compute_dtype="float32")
    params["decoder"]["memory_rows"] = params["decoder"]["embed"]["table"][list(ids)]
    params = random_params(model, 0) | params
    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        np.testing.assert_allclose(our_logits(params, model, tokens), expected, atol=2e-4, rtol=1e-4)
        if case == "qwen2-yarn":
            rows = np.ones((2, 1, 90), np.int32), np.arange(90, dtype=np.int32)[None, None].repeat(2, 0)
            hidden = Encoder(model).apply({"params": params["encoder"]}, tokens[:, None].astype(np.int32), *rows)
            want = theirs(source, tokens, transformers.AutoModel)
            np.testing.assert_allclose(np.asarray(hidden)[:, 0], want, atol=2e-4, rtol=1e-4)
    out = export(params, model, tmp_path / "out")
    np.testing.assert_allclose(theirs(out / "decoder", tokens), expected, atol=1e-5)
    hidden = theirs(out / "encoder", tokens, transformers.AutoModel)
    np.testing.assert_allclose(hidden, theirs(source, tokens, transformers.AutoModel), atol=1e-5)
    import_model(out, tmp_path / "in")
    again, loaded = load_hf(tmp_path / "in", compute_dtype="float32")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

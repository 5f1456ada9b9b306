"""Foreign ``config.json`` files: what does not fit is an error that names the file and the key."""

import json
import math

import pytest

from lclm_jax.interop.hf_config import read_backbone, read_json
from lclm_jax.interop.safetensors_io import CheckpointError

VALUES = {
    "model_type": "qwen3", "vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 16, "max_position_embeddings": 64,
}  # fmt: skip


def read(folder, **changes):
    (folder / "config.json").write_text(json.dumps(VALUES | changes))
    return read_backbone(folder)


def test_a_shape_is_read(tmp_path):
    assert read(tmp_path).num_layers == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": "two"}, "num_attention_heads='two' is not a positive whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is not a positive whole number"),
        ({"num_hidden_layers": -1}, "num_layers=-1: .*greater than 0"),
        ({"head_dim": 3}, "head_dim=3 is odd"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_heads=3 is not a multiple of num_kv_heads=2"),
        ({"rms_norm_eps": "small"}, "norm_eps='small': "),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"model_type": "gpt2"}, "model_type='gpt2' is not supported"),
    ],
)
def test_what_does_not_fit_names_file_and_key(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        read(tmp_path, **change)


SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("change", "theta"),
    [
        ({}, 10_000.0),
        ({"rope_theta": 1e6}, 1e6),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": None, "rope_type": "default"}}, 1e6),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"}}, 1e6),
        ({"rope_scaling": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6),
        ({"rope_scaling": {"rope_theta": 1e6, "type": "default"}}, 1e6),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}}, 1e6),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}, 1e6),
        ({"rope_theta": 1e6, "partial_rotary_factor": 1.0, "rope_scaling": None}, 1e6),
    ],
)
def test_rotary_settings_wherever_they_stand(tmp_path, change, theta):
    backbone = read(tmp_path, **change)
    assert (backbone.rope_theta, backbone.rope_scaling.type) == (theta, "default")


def test_rotary_scaling_has_the_defaults_of_transformers(tmp_path):
    scaling = read(tmp_path, rope_scaling=SCALED).rope_scaling
    assert (scaling.type, scaling.original_positions) == ("llama3", 64)
    scaling = read(tmp_path, rope_scaling={"type": "yarn", "original_max_position_embeddings": 16}).rope_scaling
    assert (scaling.factor, scaling.beta_fast, scaling.truncate) == (4.0, 32.0, True)
    assert scaling.attention_factor == pytest.approx(1 + 0.1 * math.log(4))


def test_keys_that_newer_versions_of_transformers_write_for_gguf(tmp_path):
    assert read(tmp_path, unk_token_id=0, _model_name_or_path="a name") == read(tmp_path)


REFUSED = [
    (
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}},
        r"rope_theta=1000000.0, but rope_parameters.rope_theta",
    ),
    ({"rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 16}}, "factor=8.0, .*no rope_type"),
    (
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "'dynamic' is not supported; supported are default, lin",
    ),
    ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [1, 1]}}, "'mrope' is not supported"),
    ({"rope_scaling": SCALED | {"factor": "8"}}, "factor='8' is not a positive number"),
    ({"rope_scaling": {k: v for k, v in SCALED.items() if k != "low_freq_factor"}}, "'llama3' lacks low_freq_factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "beta_fast=32 is not supported with"),
    ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2.0}}, r"rotary scaling \['yarn'\] is not supported"),
    ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}}, "embeddings=0 is not a positive"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": "x"}}, "mscale='x' is not a positive number"),
    ({"layer_types": [["full_attention"]]}, "layer_types=.* is no list of names"),
    ({"model_type": ["qwen3"]}, r"model_type=\['qwen3'\] is not supported"),
    ({"rope_scaling": [1]}, r"rope_scaling=\[1\] is no object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; it must be 1.0"),
    ({"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}, "rope_parameters lacks full_attention"),
    ({"attention_bias": True}, "attention_bias=True is not supported with model_type='qwen3'"),
    ({"mlp_bias": True}, "mlp_bias=True is not supported; it must be None or False"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; it must be None or 'silu'"),
    ({"num_experts": 8}, "num_experts=8 is not a setting of a qwen3 model that is known"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not a setting"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map=.* is not supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config=.*must be None"),
    ({"use_sliding_window": True, "sliding_window": 32}, "sliding_window=32 is below max_position_embeddings=64"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
    ({"model_type": "mistral"}, "sliding_window=4096 is below max_position_embeddings=8192"),
    ({"num_attention_heads": True}, "num_attention_heads=True is not a positive whole number"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_settings_are_understood_or_refused(tmp_path, change, message):
    if change == {"model_type": "mistral"}:  # what transformers takes where the file says nothing
        change = change | {"max_position_embeddings": 8192}
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read(tmp_path, **change)


def test_settings_that_are_off_are_accepted(tmp_path):
    off = dict(sliding_window=32, use_sliding_window=False, max_window_layers=2, final_logit_softcapping=None)
    off |= dict(attention_bias=False, mlp_bias=None, layer_types=["full_attention"] * 2, transformers_version="4.51.0")
    assert read(tmp_path, **off) == read(tmp_path)
    assert read(tmp_path, model_type="mistral", sliding_window=None, head_dim=None).head_dim == 4
    assert read(tmp_path, model_type="mistral", sliding_window=64).qkv_bias is False
    assert read(tmp_path, model_type="qwen2", attention_bias=None).qkv_bias is True


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[]", "holds no JSON object")])
def test_damaged_files(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_json(tmp_path / "absent.json")

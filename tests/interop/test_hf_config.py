"""Foreign ``config.json`` files: what does not fit is an error that names the file and the key."""

import json

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


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[]", "holds no JSON object")])
def test_damaged_files(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_json(tmp_path / "absent.json")

"""``config.json`` of the supported families: reading what transformers 4 and 5 write, writing what both read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lclm_jax.config import BackboneConfig
from lclm_jax.config.base import Tree
from lclm_jax.interop.foreign.keys import MODEL_FIXED, MODEL_HARMLESS, check_keys
from lclm_jax.interop.foreign.rope import PLACES, TOP, layer_types, read_rope, rope_json
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.types import JsonObject

Branch = TypeVar("Branch", bound=Tree)

FAMILIES = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Model"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
    "llama": ("LlamaForCausalLM", "LlamaModel"),
    "mistral": ("MistralForCausalLM", "MistralModel"),
}
"""model_type -> its causal language model and its base model."""

# What transformers takes for a key that a file leaves out, where it is not the same for all families.
_KV_HEADS = {"qwen3": 32, "qwen2": 32, "mistral": 8}
_WINDOW = {"qwen3": 4096, "qwen2": 4096, "mistral": 4096}
_HEAD_DIM = {"qwen3": 128}

_UNDERSTOOD = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "intermediate_size", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"),
    *("sliding_window", "use_sliding_window", "layer_types", "attention_bias", *PLACES, *TOP),
)


def read_json(path: Path) -> JsonObject:
    """A JSON object; raises ``CheckpointError`` if the file is missing or holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; name a complete model folder") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return values


def write_json(path: Path, values: JsonObject) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_backbone(folder: Path) -> BackboneConfig:
    """The backbone that ``folder/config.json`` describes.

    Raises ``CheckpointError`` for another family, for settings that this implementation does not have, and for keys
    that it does not know; the message names the key, its value and what is supported.
    """
    path = folder / "config.json"
    values = read_json(path)
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(f"{path}: model_type={family!r} is not supported; use one of {', '.join(FAMILIES)}")
    check_keys(path, values, (*_UNDERSTOOD, *MODEL_HARMLESS), MODEL_FIXED, f"a {family} model")
    _check_attention(values, family, path)
    heads = _count(values, "num_attention_heads", path)
    width = _count(values, "hidden_size", path)
    theta, scaling = read_rope(values, _count(values, "max_position_embeddings", path), path)
    kv_heads = heads if "num_key_value_heads" in values else _KV_HEADS.get(family, heads)
    fields = dict(
        vocab_size=_need(values, "vocab_size", path),
        hidden_size=width,
        num_layers=_need(values, "num_hidden_layers", path),
        num_heads=heads,
        num_kv_heads=_or(values, "num_key_value_heads", kv_heads),
        head_dim=_or(values, "head_dim", _HEAD_DIM.get(family, width // heads)),
        mlp_size=_need(values, "intermediate_size", path),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_or(values, "rms_norm_eps", 1e-6),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2",
        tie_embeddings=_or(values, "tie_word_embeddings", False),
        max_positions=_need(values, "max_position_embeddings", path),
    )
    return parsed(BackboneConfig, fields, path)


def _check_attention(values: JsonObject, family: str, path: Path) -> None:
    """Raise ``CheckpointError`` for biases that the family does not always have, and for attention that is not full."""
    if values.get("attention_bias") and family != "qwen2":
        raise CheckpointError(
            f"{path}: attention_bias={values['attention_bias']!r} is not supported with model_type={family!r}; it must"
            " be false (biases of queries, keys and values are supported as model_type='qwen2' has them)"
        )
    others = set(layer_types(values, path)) - {"full_attention"}
    if others:
        raise CheckpointError(f"{path}: layer_types has {', '.join(sorted(others))}; only full_attention is supported")
    asked = values.get("use_sliding_window") if family in ("qwen2", "qwen3") else True
    window = values.get("sliding_window", _WINDOW.get(family)) if asked else None
    longest = _count(values, "max_position_embeddings", path)
    if window is not None and (not isinstance(window, int) or window < longest):
        raise CheckpointError(
            f"{path}: sliding_window={window!r} is below max_position_embeddings={longest}, and only full attention is"
            f" supported; if no text of yours is longer than {window}, set max_position_embeddings to that"
        )


def parsed(tree: type[Branch], values: Mapping[str, object], path: Path) -> Branch:
    """``tree`` of ``values`` read from ``path``; raises ``CheckpointError`` that names file, key and value."""
    try:
        return tree.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = f"{key}={first['input']!r}: " if key else ""
        raise CheckpointError(
            f"{path}: {found}{first['msg'].removeprefix('Value error, ')}; use another model"
        ) from None


def stored_dtype(folder: Path) -> str | None:
    """What ``folder/config.json`` says of its weights (``dtype``, or ``torch_dtype`` in older files)."""
    values = read_json(folder / "config.json")
    return values.get("dtype") or values.get("torch_dtype")


def backbone_json(backbone: BackboneConfig, causal: bool, dtype: str, special: dict[str, int | None]) -> JsonObject:
    """``config.json`` of a backbone.

    Args:
        backbone: its shape.
        causal: with a language-model head, or the base model alone.
        dtype: how the weights are stored.
        special: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.
    """
    family = "qwen3" if backbone.qk_norm else "qwen2" if backbone.qkv_bias else "llama"
    values = {
        "architectures": [FAMILIES[family][0 if causal else 1]],
        "attention_dropout": 0.0,
        "dtype": dtype,
        "head_dim": backbone.head_dim,
        "hidden_act": "silu",
        "hidden_size": backbone.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": backbone.mlp_size,
        "max_position_embeddings": backbone.max_positions,
        "model_type": family,
        "num_attention_heads": backbone.num_heads,
        "num_hidden_layers": backbone.num_layers,
        "num_key_value_heads": backbone.num_kv_heads,
        "rms_norm_eps": backbone.norm_eps,
        **rope_json(backbone.rope_theta, backbone.rope_scaling),
        "tie_word_embeddings": backbone.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": backbone.vocab_size,
        **special,
    }
    if family != "qwen2":  # its biases are no setting
        values["attention_bias"] = False
    if family == "llama":
        values |= {"mlp_bias": False, "pretraining_tp": 1}
    else:
        values |= {"sliding_window": None, "use_sliding_window": False, "max_window_layers": backbone.num_layers}
    return dict(sorted(values.items()))


def _need(values: JsonObject, name: str, path: Path) -> Any:
    if values.get(name) is None:
        raise CheckpointError(f"{path} lacks {name}; it is needed to build the model")
    return values[name]


def _count(values: JsonObject, name: str, path: Path) -> int:
    """A positive whole number."""
    value = _need(values, name, path)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"{path}: {name}={value!r} is not a positive whole number; fetch the file again")
    return value


def _or(values: JsonObject, name: str, default: Any) -> Any:
    """A key that transformers itself fills with ``default`` when the file leaves it out."""
    value = values.get(name)
    return default if value is None else value

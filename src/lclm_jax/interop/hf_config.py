"""``config.json`` of Qwen3 and Llama models: reading both styles, writing one that old and new transformers read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lclm_jax.config import BackboneConfig
from lclm_jax.config.base import Tree
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.types import JsonObject

Branch = TypeVar("Branch", bound=Tree)

FAMILIES = {"qwen3": ("Qwen3ForCausalLM", "Qwen3Model"), "llama": ("LlamaForCausalLM", "LlamaModel")}

# What the forward pass does not implement, and the only values with which it is not needed.
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}


def read_json(path: Path) -> JsonObject:
    """A JSON object; raises ``CheckpointError`` if the file is missing or holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; name a complete model folder") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return values


def write_json(path: Path, values: JsonObject) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_backbone(folder: Path) -> BackboneConfig:
    """The backbone that ``folder/config.json`` describes.

    Reads ``rope_theta`` at the top or in ``rope_parameters``. Raises ``CheckpointError`` for another family, and for
    settings that this implementation does not have (biases, sliding windows, scaled rotary embeddings).
    """
    path = folder / "config.json"
    values = read_json(path)
    family = values.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{path}: model_type={family!r} is not supported; use one of {', '.join(FAMILIES)}")
    for name, allowed in _FIXED.items():
        if name in values and values[name] not in allowed:
            raise CheckpointError(f"{path}: {name}={values[name]!r} is not supported; it must be {allowed[0]!r}")
    heads = _count(values, "num_attention_heads", path)
    width = _count(values, "hidden_size", path)
    fields = dict(
        vocab_size=_need(values, "vocab_size", path),
        hidden_size=width,
        num_layers=_need(values, "num_hidden_layers", path),
        num_heads=heads,
        num_kv_heads=_or(values, "num_key_value_heads", heads),
        head_dim=_or(values, "head_dim", width // heads if family == "llama" else 128),
        mlp_size=_need(values, "intermediate_size", path),
        rope_theta=_rope_theta(values, path),
        norm_eps=_or(values, "rms_norm_eps", 1e-6),
        qk_norm=family == "qwen3",
        tie_embeddings=_or(values, "tie_word_embeddings", False),
        max_positions=_need(values, "max_position_embeddings", path),
    )
    return parsed(BackboneConfig, fields, path)


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
    family = "qwen3" if backbone.qk_norm else "llama"
    values = {
        "architectures": [FAMILIES[family][0 if causal else 1]],
        "attention_bias": False,
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
        # transformers 4 reads rope_theta, transformers 5 rope_parameters.
        "rope_parameters": {"rope_theta": backbone.rope_theta, "rope_type": "default"},
        "rope_theta": backbone.rope_theta,
        "tie_word_embeddings": backbone.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": backbone.vocab_size,
        **special,
    }
    if family == "qwen3":
        values |= {"sliding_window": None, "use_sliding_window": False, "max_window_layers": backbone.num_layers}
    else:
        values |= {"mlp_bias": False, "pretraining_tp": 1}
    return dict(sorted(values.items()))


def _need(values: JsonObject, name: str, path: Path) -> Any:
    if values.get(name) is None:
        raise CheckpointError(f"{path} lacks {name}; it is needed to build the model")
    return values[name]


def _count(values: JsonObject, name: str, path: Path) -> int:
    """A positive whole number."""
    value = _need(values, name, path)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{path}: {name}={value!r} is not a positive whole number; fetch the file again")
    return value


def _or(values: JsonObject, name: str, default: Any) -> Any:
    """A key that transformers itself fills with ``default`` when the file leaves it out."""
    value = values.get(name)
    return default if value is None else value


def _rope_theta(values: JsonObject, path: Path) -> float:
    parameters = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or {}
    for kind in (parameters.get("rope_type"), scaling.get("rope_type"), scaling.get("type")):
        if kind not in (None, "default"):
            raise CheckpointError(f"{path}: rotary scaling {kind!r} is not supported; use a model without it")
    theta = parameters.get("rope_theta", values.get("rope_theta"))
    # The default of both families in transformers.
    return float(10_000.0 if theta is None else theta)

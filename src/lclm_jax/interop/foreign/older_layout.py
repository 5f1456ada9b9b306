"""Older public LCLM checkpoints: ``llm/``, ``embedder/``, ``projectors/``, and other words for the compression.

The words are those of ``model_config.json``, or parts of the checkpoint's name (``cs16-summary_mean-bst1024-mlp-ov0``).
What neither says is asked for; nothing is guessed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lclm_jax.config.registry.adapters import ADAPTERS
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.interop.foreign.keys import LCLM_HARMLESS, check_keys, shown
from lclm_jax.interop.hf_config import read_json
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.types import JsonObject

FOLDERS = {"decoder": "llm", "encoder": "embedder", "adapter": "projectors"}
"""Our name of a part -> its folder in the older layout."""


class _Setting(NamedTuple):
    """One setting of the compression."""

    older: tuple[str, ...]
    """Keys of the older ``model_config.json``."""
    in_name: str
    """Pattern of a word of the checkpoint's name, the value in group 1."""


SETTINGS = {
    "compression_ratio": _Setting(("chunk_size",), r"(?:cs|chunk_size)[-_]?(\d+)"),
    "encoder_window_size": _Setting(("batch_summary_tokens",), r"bst[-_]?(\d+)"),
    "pooling": _Setting(("pooling_token",), r"(summary(?:[-_](?:mean|concat))?)"),
    "encoder_mask_type": _Setting(("embed_mask_type",), r"(?<!non[-_])(causal|bidirectional)"),
    "boundary_overlap": _Setting(("overlap_tokens",), r"ov[-_]?(\d+)"),
    "adapter_type": _Setting((), r"(attn_mlp|mlp_attn|mlp)"),
    "num_adapter_layers": _Setting((), r"(?!)"),
}
"""Key of today's ``model_config.json`` -> what says it in the older layout."""

OPTIONS = {
    "ratio": "compression_ratio",
    "window": "encoder_window_size",
    "pooling": "pooling",
    "mask": "encoder_mask_type",
    "overlap": "boundary_overlap",
    "adapter": "adapter_type",
    "adapter_layers": "num_adapter_layers",
}
"""Option of ``lclm import`` -> the key that it gives."""

_POOLINGS = {"summary_mean": "mean", "summary_concat": "concat", "summary": "eos"}
_ORDERS = {"attention_mlp": "attn_mlp", "mlp_attention": "mlp_attn"}
_ADAPTER_KEYS = ("use_adapter_attention", "adapter_order")


def is_older(folder: Path) -> bool:
    """Whether ``folder`` is a checkpoint of the older layout."""
    return all((folder / name).is_dir() for name in FOLDERS.values())


def translated(folder: Path, name: str, given: Mapping[str, object]) -> JsonObject:
    """Today's ``model_config.json`` of a checkpoint of the older layout.

    Args:
        folder: the checkpoint.
        name: what it is called: a path, or the id of a repository.
        given: option of ``lclm import`` -> value.

    Raises:
        CheckpointError: a key is unknown, two places disagree, or a setting is said nowhere; then the message names the
            option to say it with.
    """
    path = folder / "model_config.json"
    values = read_json(path) if path.is_file() else {}
    older = [key for setting in SETTINGS.values() for key in setting.older]
    check_keys(path, values, {*SETTINGS, *older, *_ADAPTER_KEYS, *LCLM_HARMLESS}, {}, "an older LCLM")
    found: JsonObject = {}
    for key, option in {key: option for option, key in OPTIONS.items()}.items():
        said = list(_said(key, values, path, name))
        if option in given:
            said.append((f"--{option.replace('_', '-')}", given[option]))
        for where, value in said:
            if value != said[0][1]:
                raise CheckpointError(
                    f"{folder}: {said[0][0]} says {key}={shown(said[0][1])}, {where} says {shown(value)}; correct the"
                    " one that is wrong"
                )
        if said:
            found[key] = said[0][1]
        elif key != "num_adapter_layers" or found["adapter_type"] != "mlp":
            raise CheckpointError(
                f"{folder}: neither model_config.json nor the name of the checkpoint says its {key}; say it with"
                f" --{option.replace('_', '-')}"
            )
    return found


def _said(key: str, values: JsonObject, path: Path, name: str) -> Iterator[tuple[str, object]]:
    """(where, value) of every place but the options that says ``key``."""
    setting = SETTINGS[key]
    for one in (key, *setting.older):
        if values.get(one) is not None:
            yield f"{path.name} ({one})", _meaning(key, one, values[one], path)
    if key == "adapter_type" and values.get("use_adapter_attention") is False:
        yield f"{path.name} (use_adapter_attention)", "mlp"
    elif key == "adapter_type" and values.get("use_adapter_attention") and values.get("adapter_order") in _ORDERS:
        yield f"{path.name} (adapter_order)", _ORDERS[values["adapter_order"]]
    called = "/".join(name.split("/")[-3:])
    for match in re.finditer(rf"(?<![a-zA-Z0-9]){setting.in_name}(?![a-zA-Z0-9])", called):
        value = match.group(1).replace("summary-", "summary_")
        yield f"the name ({match.group()})", int(value) if value.isdecimal() else _POOLINGS.get(value, value)


def _meaning(key: str, name: str, value: object, path: Path) -> object:
    """What ``value`` of the key ``name`` means in today's words."""
    if key == "pooling":
        known = {one: one for one, row in POOLINGS.items() if row.published} if name == "pooling" else {}
        value = (known | _POOLINGS).get(str(value))
    elif key == "adapter_type":
        value = value if value in ADAPTERS else None
    elif key == "encoder_mask_type":
        value = value if value in ("causal", "bidirectional") else None
    elif isinstance(value, bool) or not isinstance(value, int):
        value = None
    if value is None:
        raise CheckpointError(
            f"{path}: the meaning of {name}={shown(read_json(path)[name])} is not known; take the key out and say"
            f" {key} with --{next(option for option, one in OPTIONS.items() if one == key).replace('_', '-')}"
        )
    return value

"""Rotary settings in all the places where transformers 4 and 5 put them, read as one, and written for both."""

import math
from pathlib import Path

from pydantic import ValidationError

from lclm_jax.config import RopeScaling
from lclm_jax.config.model import ROPE_KEYS
from lclm_jax.interop.foreign.keys import shown
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.types import JsonObject, ReadOnlyJson

PLACES = ("rope_parameters", "rope_scaling")
TOP = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Keys of ``config.json`` itself."""
DEFAULT_THETA = 10_000.0
"""Of every family, where a file says nothing."""

_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
_ORIGINAL = "original_max_position_embeddings"
_NAMES = {"original_positions": _ORIGINAL}
"""Our keys that are called otherwise in the files."""


def read_rope(values: ReadOnlyJson, positions: int, path: Path) -> tuple[float, RopeScaling]:
    """(base of the frequencies, their scaling) of a ``config.json``.

    Args:
        values: its content.
        positions: its ``max_position_embeddings``.
        path: the file, for messages.

    Raises:
        CheckpointError: two places disagree, the kind is not supported or unknown, or a key that it needs is missing.
    """
    found, conflict = _gathered(values, path)
    kind = _kind(found, path)
    if conflict:
        raise CheckpointError(f"{path}: {conflict}; keep the one that the model was trained with")
    theta = _number(found.pop("rope_theta", DEFAULT_THETA), "rope_theta", path)
    partial = found.pop("partial_rotary_factor", 1.0)
    if partial != 1:
        raise CheckpointError(f"{path}: partial_rotary_factor={shown(partial)} is not supported; it must be 1.0")
    fields: JsonObject = {"type": kind}
    if "original_positions" in ROPE_KEYS[kind]:
        fields["original_positions"] = _number(found.pop(_ORIGINAL, positions), _ORIGINAL, path)
    found.pop(_ORIGINAL, None)  # of the other kinds it is a remark
    if kind == "yarn":
        fields |= _yarn(found, positions, fields["original_positions"], path)
    for name in ROPE_KEYS[kind]:
        if name not in fields:
            fields[name] = _number(found.pop(name), name, path)
    if found:
        listed = ", ".join(f"{name}={shown(value)}" for name, value in found.items())
        raise CheckpointError(
            f"{path}: {listed} is not supported with rope_type={kind!r}; take it out if it changes nothing"
        )
    try:
        return theta, RopeScaling(**fields)
    except ValidationError as error:
        raise CheckpointError(f"{path}: rotary scaling {shown(fields)}: {error.errors()[0]['msg']}") from None


def _kind(found: JsonObject, path: Path) -> str:
    """The kind of scaling, which ``found`` loses; raises ``CheckpointError`` unless it is supported and complete."""
    kind = found.pop("rope_type", None)
    if kind is None and found.keys() - {*TOP}:
        listed = ", ".join(f"{name}={shown(value)}" for name, value in found.items() if name not in TOP[:2])
        raise CheckpointError(
            f"{path}: rotary scaling has {listed} and no rope_type; name one of {', '.join(ROPE_KEYS)}"
        )
    kind = kind or "default"
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise CheckpointError(
            f"{path}: rotary scaling {shown(kind)} is not supported; supported are {', '.join(ROPE_KEYS)}"
        )
    # YaRN has a default for the others, and for the factor if the original length is known.
    if kind == "yarn":
        needed = [] if _ORIGINAL in found else ["factor"]
    else:
        needed = [name for name in ROPE_KEYS[kind] if name != "original_positions"]
    missing = [name for name in needed if name not in found]
    if missing:
        raise CheckpointError(f"{path}: rotary scaling {kind!r} lacks {missing[0]}; it is needed to build the model")
    return kind


def rope_json(theta: float, scaling: RopeScaling) -> JsonObject:
    """The keys of ``config.json``: transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters."""
    keys = {_NAMES.get(name, name): getattr(scaling, name) for name in ROPE_KEYS[scaling.type]}
    kind = {"rope_type": scaling.type, **keys}
    old = {} if scaling.type == "default" else {"rope_scaling": kind}
    return {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, **kind}, **old}


def _gathered(values: ReadOnlyJson, path: Path) -> tuple[JsonObject, str]:
    """Every rotary setting that is not null, by its name in transformers 5; and what two places say differently."""
    used = set(layer_types(values, path) or ["full_attention"])
    places: list[tuple[str, ReadOnlyJson]] = [("", {name: values.get(name) for name in TOP})]
    for place in PLACES:
        given = values.get(place)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise CheckpointError(f"{path}: {place}={shown(given)} is no object; fetch the file again")
        by_type = {name: one for name, one in given.items() if name in _LAYER_TYPES}
        places.append((f"{place}.", {name: one for name, one in given.items() if name not in by_type}))
        if by_type and not used <= {name for name, one in by_type.items() if one}:
            raise CheckpointError(f"{path}: {place} lacks {', '.join(sorted(used - by_type.keys()))}; complete it")
        places += [(f"{place}.{name}.", one) for name, one in by_type.items() if name in used and one]
    found: dict[str, tuple[str, object]] = {}
    conflict = ""
    for place, settings in places:
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path}: {place[:-1]}={shown(settings)} is no object; fetch the file again")
        for given_name, value in settings.items():
            name = "rope_type" if given_name == "type" else given_name
            if value is None:
                continue
            if name in found and found[name][1] != value:
                first, other = found[name]
                conflict = conflict or f"{first}={shown(other)}, but {place}{given_name}={shown(value)}"
            found.setdefault(name, (place + given_name, value))
    return {name: value for name, (_, value) in found.items()}, conflict


def layer_types(values: ReadOnlyJson, path: Path) -> list[str]:
    """The kind of attention of each layer, as ``config.json`` lists it; raises ``CheckpointError`` if it does not."""
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise CheckpointError(f"{path}: layer_types={shown(kinds)} is no list of names; fetch the file again")
    return kinds


def _yarn(found: JsonObject, positions: int, original: float, path: Path) -> JsonObject:
    """The keys of YaRN with the defaults of transformers; ``found`` loses them."""
    factor = _number(found.pop("factor", positions / original), "factor", path)
    both = all(found.get(name) for name in ("mscale", "mscale_all_dim"))
    given = found.pop("attention_factor", None)
    above, below = (_number(found.pop(name, None) or 1.0, name, path) for name in ("mscale", "mscale_all_dim"))
    if given is None:
        given = _mscale(factor, above) / _mscale(factor, below) if both else _mscale(factor, 1.0)
    return {
        "factor": factor,
        "attention_factor": _number(given, "attention_factor", path),
        "beta_fast": _number(found.pop("beta_fast", None) or 32.0, "beta_fast", path),
        "beta_slow": _number(found.pop("beta_slow", None) or 1.0, "beta_slow", path),
        "truncate": found.pop("truncate", True),
    }


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _number(value: object, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {name}={shown(value)} is not a positive number; fetch the file again")
    return float(value)

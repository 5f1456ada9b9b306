"""What a checkpoint came from, stored with it, and the check that a run resumes with the same.

A stage's result depends on its own settings, on what all stages share, and on the stages it started from: on their keys
of the role ``result``. Keys of other roles may change between restarts.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lclm_jax.config import Config, RunPaths, describe_keys, first_release_values, result_values, role_of
from lclm_jax.config.base import Tree
from lclm_jax.errors import LclmError
from lclm_jax.types import Json, JsonObject

_TOWERS = ("encoder", "decoder")


class ChangedConfigError(LclmError):
    """A stage's checkpoint was made with other settings; the message names them and how to resume."""


def parent_of(config: Config, stage: str) -> str | None:
    """The stage whose final parameters ``stage`` starts from; None: random or imported ones."""
    names = list(config.stages)
    index = names.index(stage)
    return None if index == 0 or config.stages[stage].from_scratch else names[index - 1]


def starts_from_imports(config: Config, stage: str) -> bool:
    """Whether ``stage`` begins with the weights that ``config.init`` names."""
    return stage == next(iter(config.stages)) and config.init.given and not config.stages[stage].from_scratch


def stage_inputs(config: Config, stage: str, values: Callable[[Tree], JsonObject] = result_values) -> JsonObject:
    """All settings that the result of ``stage`` depends on, but for those of the stages before it: plain values."""
    own = config.stages[stage]
    idle = {f"{tower}_lora" for tower in _TOWERS if own.peak_lr(f"{tower}_lora") is None}
    trained = values(own)
    for name in ("lr", "weight_decay"):
        trained[name] = {part: value for part, value in trained[name].items() if part not in idle}
    model = {name: value for name, value in values(config.model).items() if name != "lora"}
    imported = {"init": values(config.init)} if starts_from_imports(config, stage) else {}
    return imported | {
        "seed": config.seed,
        "corpus": values(config.corpus),
        "tokenizer": {"vocab_size": config.tokenizer.vocab_size},
        "model": model | _trained_lora(config, stage),
        "data": {"sources": {name: values(config.data.sources[name]) for name in own.sources}},
        "stages": {stage: trained | {"pack": values(config.pack(stage)), "starts_from": parent_of(config, stage)}},
        "train": values(config.train),
    }


def _inputs_before_roles(config: Config, stage: str) -> JsonObject:
    """``stage_inputs`` as they were before keys had roles: checkpoints of then hold hashes of them."""
    inputs = stage_inputs(config, stage, first_release_values)
    for branch, names in (
        (inputs["model"], ("remat", "attention")),
        (inputs["stages"][stage], ("tokens", "microbatches")),
    ):
        for name in names:
            del branch[name]
    inputs["train"] = result_values(config.train)
    return inputs


def _trained_lora(config: Config, stage: str) -> JsonObject:
    """LoRA that ``stage`` or one before it trains; until then it changes nothing, so it may be added to a run."""
    stages = [config.stages[name] for name in (stage, *_ancestors(config, stage))]
    towers = {tower for tower in _TOWERS if any(one.peak_lr(f"{tower}_lora") is not None for one in stages)}
    return {"lora": config.model.lora.model_dump(mode="json", include=towers)} if towers else {}


def provenance(config: Config, stage: str) -> JsonObject:
    """What a checkpoint of ``stage`` stores: its inputs, and a hash of those of every stage before it."""
    ancestors = {name: _hash(_without_defaults(stage_inputs(config, name))) for name in _ancestors(config, stage)}
    return {"inputs": stage_inputs(config, stage), "ancestors": ancestors}


def _ancestors(config: Config, stage: str) -> Iterator[str]:
    """The stages that ``stage`` continues, the nearest first."""
    while (parent := parent_of(config, stage)) is not None:
        yield parent
        stage = parent


def check_provenance(config: Config, stage: str, stored: JsonObject, force: bool = False) -> list[str]:
    """Compare ``stored`` (of a checkpoint) with what ``config`` says now.

    Returns:
        What differs, ``KEY: OLD -> NEW`` each; empty unless ``force`` let it pass.

    Raises:
        ChangedConfigError: they differ, and ``force`` is False; names the keys and both values.
    """
    now = provenance(config, stage)
    folder = RunPaths(config).stage(stage)
    differences = [
        (key, old, new)
        for key, old, new in differing_keys(stored["inputs"], now["inputs"])
        if role_of(Config, key) in ("result", None)
        and (old is not None or _holds(stored["inputs"], key) or not _at_default(key, new))
    ]
    if differences and not force:
        shown = ", ".join(f"{key}: {old!r} -> {new!r}" for key, old, new in differences[:4])
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise ChangedConfigError(
            f"stage {stage} was trained with other settings ({shown}{more}); set them back, delete {folder} to train"
            " it again, give the run another name, or resume with the new ones: lclm train --force"
        )
    ancestors, names = stored["ancestors"], now["ancestors"]
    changed = [name for name in {**ancestors, **names} if ancestors.get(name) not in _hashes(config, name, names)]
    if changed and not force:
        raise ChangedConfigError(
            f"stage {stage} started from {', '.join(changed)}, whose settings have changed since; set them back, delete"
            f" {folder} to train it again, or give the run another name"
        )
    shown_all = [f"{key}: {old!r} -> {new!r}" for key, old, new in differences]
    return shown_all + [f"settings of {name}, which {stage} started from" for name in changed]


def differing_keys(old: Json, new: Json, prefix: str = "") -> Iterator[tuple[str, Json, Json]]:
    """Yield (dotted key, old value, new value) where two trees of plain values differ; absent is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from differing_keys(old.get(name), new.get(name), f"{prefix}{name}.")
    elif old != new:
        yield prefix[:-1], old, new


def _hashes(config: Config, stage: str, now: Mapping[str, str]) -> tuple[str, ...]:
    """The hashes that a checkpoint may hold of the ancestor ``stage``; none if it is no ancestor any more."""
    if stage not in now:
        return ()
    return now[stage], _hash(_without_defaults(_inputs_before_roles(config, stage)))


def _holds(tree: Json, key: str) -> bool:
    """Whether ``tree`` has the dotted ``key``, be it null."""
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def _without_defaults(inputs: Json, prefix: str = "") -> Json:
    """``inputs`` less the keys at their defaults, so that a version with more keys gives the same hash."""
    if not isinstance(inputs, dict):
        return inputs
    return {
        name: _without_defaults(node, f"{prefix}{name}.")
        for name, node in inputs.items()
        if not _at_default(f"{prefix}{name}", node)
    }


def _at_default(key: str, value: Json) -> bool:
    """Whether a key (or branch) that a checkpoint does not know, as it is newer, has its default."""
    if isinstance(value, dict):
        return all(_at_default(f"{key}.{name}", node) for name, node in value.items())
    return _defaults().get(re.sub(r"^(stages|data\.sources)\.[^.]+", r"\1.NAME", key)) == json.dumps(value)


@functools.cache
def _defaults() -> dict[str, str]:
    return {key: default for key, default, *_ in describe_keys(Config)}


def checkpoints_folder(config: Config, stage: str) -> Path:
    """Where the checkpoints of ``stage`` are."""
    return RunPaths(config).stage(stage) / "checkpoints"


def _hash(values: Json) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

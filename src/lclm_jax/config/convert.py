"""The PyTorch project's experiment YAML (``models``, ``training``, ``data``, ``logging``, ``stages``) as one of ours.

Reference: ``train/launch_train.py`` of LeonLixyz/LCLM, which turns that YAML into arguments.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lclm_jax.config.base import suggestion
from lclm_jax.config.load import ConfigError
from lclm_jax.config.presets import HUB
from lclm_jax.types import JsonObject, ReadOnlyJson

# Sections, and the keys they may have; those of the set are read, those of the dictionary left out for a reason.
_READ: dict[str, set[str]] = {
    "": {"models", "training", "data", "stages", "logging"},
    "models": {
        "encoder", "decoder", "pooling", "adapter_type", "num_adapter_layers", "encoder_window_size", "mask",
        "boundary_overlap", "random_init_encoder", "random_init_decoder",
    },
    "training": {
        "compression_ratio", "max_steps", "warmup_steps", "max_grad_norm", "save_steps", "delete_old_checkpoints",
        "seed", "preempt_save_minutes", "optimizer", "scheduler", "adam_epsilon", "decoder_betas", "encoder_betas",
        "adapter_betas", "decoder_gradient_checkpointing",
    },
    "data": {"num_workers", "use_packing", "use_memory_wrapping", "train_wrap_tokens"},
    "logging": {"log_interval"},
    "stages": {
        "warmup_steps", "train_decoder", "train_encoder", "adapter_lr", "encoder_lr", "decoder_lr", "min_lr",
        "decoder_weight_decay", "encoder_weight_decay", "adapter_weight_decay", "skip_step_ranges",
        "max_packed_length",
    },
}  # fmt: skip
_BATCH = "a step has batch_rows rows whatever the devices"
_DEVICES = "how the arithmetic is laid out is the cluster file's"
_LEFT_OUT: dict[str, dict[str, str]] = {
    "": {"experiment": "the name is that of the file", "output": "run_dir says where a run lies"},
    "models": {
        "decoder_attn_implementation": "model.attention chooses a kernel",
        "embed_attn_implementation": "model.attention chooses a kernel",
        "use_fused_ce": "the cross-entropy is always tiled",
    },
    "training": {
        "max_encode_batch_size": "windows are packed in rows of a fixed number",
        "gradient_accumulation_steps": _BATCH,
        "num_epochs": "a stage's length is its steps or tokens",
        "auto_resume": "a run always resumes from its last checkpoint",
        "use_liger_kernel": "kernels are model.attention's",
    },
    "data": {"packed_attention_backend": "model.attention chooses a kernel"},
    "logging": {
        "wandb_project": "train.trackers sends metrics to a tracker",
        "wandb_name": "a tracker takes the name of the run",
        "log_token_counts": "always logged",
    },
    "stages": {
        "train_batch_size": _BATCH,
        "encoder_gradient_checkpointing": _DEVICES,
        "distributed": _DEVICES,
        "dataset": "packed pickles are never read: data.sources and mixture say what a stage trains on",
        "resume_from_checkpoint": "a stage starts from the one before, the first from init",
    },
}
# Keys whose other values have no counterpart.
_ONLY = {
    "training.optimizer": "adamw",
    "data.use_packing": True,
    "data.use_memory_wrapping": True,
    "data.train_wrap_tokens": True,
}


class Converted(NamedTuple):
    """``values``: keys to merge over the recipe; ``left_out``: (key of the source, why it has no counterpart)."""

    values: JsonObject
    left_out: list[tuple[str, str]]


def convert_experiment(source: ReadOnlyJson, recipe: ReadOnlyJson) -> Converted:
    """Our keys for the experiment ``source``, to be merged over ``recipe`` (which gives data and the stages' lengths).

    Raises:
        ConfigError: unknown or missing keys, or values that have no counterpart; names all of them.
    """
    defects = [f"{name.rstrip('.')} is not a mapping of keys" for name in _misshaped(source)]
    defects = defects or [*_unknown(source), *_unsupported(source)]
    if defects:
        raise ConfigError("\n".join(defects))
    models, training = source["models"], source["training"]
    ratio = _needed(training, "training", "compression_ratio")
    values: JsonObject = {"seed": training.get("seed", 42)}
    values |= _towers(models)
    values["model"] |= _model(models, training, ratio)
    values["data"] = {"workers": source.get("data", {}).get("num_workers", 4)}
    values["data"]["pack"] = {"encoder_row_length": _row_length(values["model"])}
    values["stages"] = {
        name: None for name in recipe.get("stages", {}) if name.removeprefix("stage") not in map(str, source["stages"])
    } | {f"stage{number}": _stage(stage, training, number) for number, stage in source["stages"].items()}
    values["train"] = _train(training, source.get("logging", {}))
    return Converted(values, list(_left_out(source)))


def _sections(source: ReadOnlyJson) -> Iterator[tuple[str, str, ReadOnlyJson]]:
    """(name in the tables above, dotted name, the section) of every section of ``source``."""
    yield "", "", source
    for name in ("models", "training", "data", "logging"):
        yield name, f"{name}.", source.get(name) or {}
    for number, stage in (source.get("stages") or {}).items():
        yield "stages", f"stages.{number}.", stage or {}


def _misshaped(source: ReadOnlyJson) -> Iterator[str]:
    if not isinstance(source.get("stages") or {}, dict):
        yield "stages"
        return
    yield from (dotted for _, dotted, section in _sections(source) if not isinstance(section, dict))


def _unknown(source: ReadOnlyJson) -> Iterator[str]:
    for name, dotted, section in _sections(source):
        known = _READ[name] | _LEFT_OUT[name].keys()
        for key in section:
            if key not in known:
                yield f"unknown key {dotted}{key}; {suggestion(str(key), sorted(known))}"
    for name in ("models", "training", "stages"):
        if not source.get(name):
            yield f"{name} is missing; this is not an experiment of the PyTorch project"


def _unsupported(source: ReadOnlyJson) -> Iterator[str]:
    for dotted, only in _ONLY.items():
        section, key = dotted.split(".")
        value = (source.get(section) or {}).get(key, only)
        if value != only:
            yield f"{dotted}={value!r} has no counterpart; only {only!r} has"
    training, models = source.get("training") or {}, source.get("models") or {}
    betas = {training[key] for key in ("decoder_betas", "encoder_betas", "adapter_betas") if key in training}
    if len(betas) > 1:
        yield f"training.*_betas differ ({', '.join(sorted(betas))}); all parts share train.optimizer.b1 and b2"
    for role in ("encoder", "decoder"):
        if models and models.get(role) not in HUB:
            yield (
                f"models.{role}={models.get(role)!r} has no preset (known: {', '.join(HUB)}); convert with a known one,"
                f" then set model.{role} to what `lclm import` prints"
            )


def _left_out(source: ReadOnlyJson) -> Iterator[tuple[str, str]]:
    for name, dotted, section in _sections(source):
        for key in section:
            if key in _LEFT_OUT[name]:
                yield f"{dotted}{key}", _LEFT_OUT[name][key]


def _needed(section: ReadOnlyJson, name: str, key: str) -> Any:
    if key not in section:
        raise ConfigError(f"{name}.{key} is missing; it has no default: set it")
    return section[key]


def _towers(models: ReadOnlyJson) -> JsonObject:
    """``model``, ``tokenizer`` and ``init`` of both backbones, imported to models/ under their hub ids."""
    roles = ("encoder", "decoder")
    folders = {role: f"models/{models[role]}" for role in roles}
    imported = {role: None if models.get(f"random_init_{role}") else folders[role] for role in roles}
    return {
        "tokenizer": folders,
        "init": imported if any(imported.values()) else None,
        "model": {role: {"preset": HUB[models[role]]} for role in roles},
    }


def _model(models: ReadOnlyJson, training: ReadOnlyJson, ratio: int) -> JsonObject:
    adapter = {"type": models.get("adapter_type", "mlp"), "num_layers": models.get("num_adapter_layers", 1)}
    return {
        "ratio": ratio,
        "window": models.get("encoder_window_size", 1024),
        "overlap": models.get("boundary_overlap", 0),
        "pooling": models.get("pooling", "mean"),
        "mask": models.get("mask", "causal"),
        "adapter": adapter,
        "remat": "full" if training.get("decoder_gradient_checkpointing", True) else "none",
    }


def _row_length(model: ReadOnlyJson) -> int:
    """Positions of an encoder row: at least 1024, a multiple of 128 that holds a window with context and markers."""
    context = model["overlap"] * (2 if model["mask"] == "bidirectional" else 1)
    markers = model["window"] // model["ratio"] if model["pooling"] == "eos" else 0
    return max(1024, -(-(model["window"] + context + markers) // 128) * 128)


def _stage(stage: ReadOnlyJson, training: ReadOnlyJson, number: object) -> JsonObject:
    needed = ("adapter_lr", "encoder_lr", "decoder_lr", "min_lr", "train_encoder", "train_decoder")
    adapter, encoder, decoder, min_lr, *trains = (_needed(stage, f"stages.{number}", key) for key in needed)
    values: JsonObject = {
        "lr": {
            "adapter": adapter,
            "encoder": encoder if trains[0] else None,
            "decoder": decoder if trains[1] else None,
        },
        "min_lr": min_lr,
        "warmup_steps": stage.get("warmup_steps", training.get("warmup_steps", 500)),
        "schedule": training.get("scheduler", "cosine"),
        # What a frozen part would decay by says nothing: the reference's own value for it changes between stages.
        "weight_decay": {
            part: _needed(stage, f"stages.{number}", f"{part}_weight_decay")
            for part, on in zip(("adapter", "encoder", "decoder"), (True, *trains), strict=True)
            if on
        },
    }
    if training.get("max_steps", -1) > 0:
        values["steps"] = training["max_steps"]
    if stage.get("skip_step_ranges"):
        values["skip_steps"] = [part.strip() for part in str(stage["skip_step_ranges"]).split(",")]
    if stage.get("max_packed_length"):
        values["pack"] = {"row_length": stage["max_packed_length"]}
    return values


def _train(training: ReadOnlyJson, logging: ReadOnlyJson) -> JsonObject:
    every = training.get("save_steps", 10000)
    b1, b2 = (float(beta) for beta in str(training.get("adapter_betas", "0.9,0.995")).split(","))
    optimizer = {"b1": b1, "b2": b2, "eps": training.get("adam_epsilon", 1e-8)}
    checkpoint = {"every_steps": every} | (
        {} if training.get("delete_old_checkpoints", True) else {"keep_every": every}
    )
    return {
        "optimizer": optimizer | {"clip_norm": training.get("max_grad_norm", 1.0)},
        "checkpoint": checkpoint,
        "log_every": logging.get("log_interval", 1),
        "stop": {"before_end_seconds": 60 * training.get("preempt_save_minutes", 0)},
    }

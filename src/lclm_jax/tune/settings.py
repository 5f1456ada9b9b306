"""The run that a tuning is: its configuration, from the folder of a model, from the rows, and from a few choices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from lclm_jax.config import Config, ModelConfig, PackConfig, load_config
from lclm_jax.data.packing.row_packer import ExampleWindows
from lclm_jax.data.store.shards import open_split
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.interop.hf_config import stored_dtype
from lclm_jax.interop.load import read_model
from lclm_jax.types import JsonObject

STAGE = "tune"
RATES = {"adapter": 3e-4, "encoder": 3e-5, "decoder": 1e-5, "encoder_lora": 2e-4, "decoder_lora": 2e-4}
"""Part that can be trained -> its peak learning rate: those of the last stage for towers, ten times that for what is
small."""
_LORA = {"rank": 16, "alpha": 32}
_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
_EXAMPLES_A_STEP = 16
_FILL = 0.9
"""Share of the decoder positions that packed rows fill, about."""


@dataclass(frozen=True)
class TuneOptions:
    """Choices of a tuning."""

    train: tuple[str, ...]
    """Parts that train, keys of ``RATES``."""
    epochs: float = 3.0
    """Passes over the rows, at most."""
    held_out: float = 0.1
    """Share of the rows that is measured and not trained on."""
    evaluations: int = 12
    """Measurements of the held-out loss, evenly over the steps."""
    patience: int = 3
    """Measurements without a new best that end the tuning."""
    answers: int = 64
    """Held-out questions that are answered before and after."""
    max_new_tokens: int = 64
    """Tokens of an answer."""
    max_positions: int = 16384
    """Decoder positions of a row; longer examples are left out."""
    overrides: tuple[str, ...] = ()
    """``KEY=VALUE`` of the configuration, which win."""


def write_settings(
    folder: Path, data: Path, root: Path, options: TuneOptions, layout: JsonObject | None = None
) -> Config:
    """Write the configuration of the run in ``root`` to ``root/tune.yaml`` and load it.

    Args:
        folder: an LCLM.
        data: rows of chats, or of context, question and answer.
        root: of the run.
        options: choices.
        layout: ``pack``, ``steps`` and so on of ``layout_of``; None: any, as nothing is prepared yet.
    """
    model, dtype = read_model(folder), stored_dtype(folder / "decoder")
    low = dtype if dtype == "bfloat16" else "float32"
    compression = {"ratio", "window", "overlap", "pooling", "mask", "adapter", "encoder", "decoder", "lora"}
    keys = model.model_dump(mode="json", include=compression)
    for tower in ("encoder", "decoder"):
        keys[tower].pop("preset", None)
        if f"{tower}_lora" in options.train and keys["lora"][tower] is None:
            keys["lora"][tower] = _LORA
    stage = {"lr": {part: RATES[part] for part in options.train}, "mixture": {"chat": 1.0}, "steps": 1, "batch_rows": 1}
    layout = layout or {"pack": PackConfig().model_dump(), "stage": {}, "evaluate": 1}
    chats = {"format": _FORMATS.get(data.suffix, "jsonl"), "paths": [str(data)], "records": "chat"}
    values = {
        "name": root.name,
        "run_dir": str(root),
        "corpus": {
            "collections": {"chat": chats},
            "validation_share": 0.0,
            "held_out_share": options.held_out,
        },
        "tokenizer": {part: str(folder / part) for part in ("decoder", "encoder")},
        "model": keys | {"compute_dtype": low, "param_dtype": low},
        "init": {"lclm": str(folder)},
        "data": {
            "sources": {"chat": {"collection": "chat", "objective": "chat"}},
            "pack": layout["pack"] | {"encoder_row_length": _encoder_row(model)},
        },
        "stages": {STAGE: stage | layout["stage"]},
        "train": {
            "checkpoint": {"every_steps": layout["evaluate"], "keep_last": options.patience + 2},
            "probe": {"every_steps": layout["evaluate"]},
        },
        "mesh": {"fsdp": -1},
    }
    path = root / "tune.yaml"
    write_text(path, yaml.safe_dump(values, sort_keys=False))
    return load_config(path, options.overrides)


def layout_of(config: Config, options: TuneOptions, devices: int) -> JsonObject:
    """Row layout, batch and steps that suit the prepared rows.

    The longest example that ``options.max_positions`` lets in fits a row, and a step has about sixteen examples.

    Raises:
        LclmError: there are no rows to train on, or none to hold out.
    """
    split = open_split(config, "chat", "train")
    held_out = len(open_split(config, "chat", "held_out"))
    if not len(split) or not held_out:
        raise LclmError(
            f"{len(split)} rows to train on and {held_out} held out are too few; give more rows, or another --held-out"
        )
    records = np.arange(len(split))
    spans = split.lists("span_tokens", records)
    assert spans is not None, "these are chats"
    model = config.model
    latents = type(spans)(spans.offsets, -(-spans.values // model.ratio)).sums()
    positions = split.numbers("decoder_tokens", records) + latents
    longest = int(min(positions.max(), options.max_positions))
    row_length = -(-max(longest, 64) // 64) * 64
    windows, slack, width = ExampleWindows(spans, model), model.ratio - 1, _encoder_row(model)
    fits = positions <= row_length
    # Windows of these totals surely fit so many rows, however they fall (``RowPacker``).
    needed = windows.storage + windows.windows * slack
    rows = -(-needed // np.maximum(width - windows.largest - slack, 1))
    encoder_rows = max(1, int(rows[fits].max(initial=1)))
    each = max(1.0, row_length * _FILL / float(positions[fits].mean()))
    batch_rows = devices * max(1, round(_EXAMPLES_A_STEP / each / devices))
    per_epoch = float(positions[fits].sum()) / (row_length * _FILL * batch_rows)
    steps = max(options.evaluations, math.ceil(options.epochs * per_epoch))
    return {
        "pack": {"row_length": row_length, "encoder_rows": encoder_rows},
        "stage": {"steps": steps, "batch_rows": batch_rows, "microbatches": batch_rows // devices},
        "evaluate": max(1, steps // options.evaluations),
    }


def _encoder_row(model: ModelConfig) -> int:
    """R: two windows with all that belongs to them, a multiple of N and of 128 where that is not far."""
    markers = model.window // model.ratio if model.has_markers else 0
    right = model.overlap if model.mask == "bidirectional" else 0
    one = -(-model.overlap // model.ratio) * model.ratio + model.window + right + markers
    multiple = math.lcm(128, model.ratio) if one >= 128 else model.ratio
    return -(-2 * one // multiple) * multiple


def parts_of(names: Sequence[str]) -> tuple[str, ...]:
    """``names``, each once, in the order of ``RATES``."""
    return tuple(part for part in RATES if part in names)

"""Tiny LCLMs with random weights, exported: eight that have every published setting between them, and prompts for them.

What answers for them: the JAX generator, transformers and vLLM. Weights are large enough for answers to vary.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from tests.exporting import export_model

from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

# vLLM's attention on CPUs takes heads of 32 and more.
TOWER = dict(
    vocab_size=400, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=128,
    rope_theta=1e4, max_positions=512,
)  # fmt: skip
LLAMA: dict[str, Any] = {"qk_norm": False}
BIDIRECTIONAL = {"mask": "bidirectional"}
SETTINGS: dict[str, dict[str, Any]] = {
    "mean": dict(ratio=4, window=32),
    "overlap": dict(ratio=4, window=16, overlap=8, decoder=LLAMA),
    "eos": dict(ratio=4, window=16, pooling="eos", encoder=LLAMA | {"hidden_size": 96}),
    "concat": dict(ratio=4, window=32, overlap=4, pooling="concat", **BIDIRECTIONAL),
    "attn_mlp": dict(ratio=8, window=32, adapter={"type": "attn_mlp", "num_layers": 2}, encoder={"hidden_size": 96}),
    "mlp_attn": dict(
        ratio=16,
        window=32,
        overlap=16,
        adapter={"type": "mlp_attn"},
        decoder=LLAMA | {"tie_embeddings": False},
        **BIDIRECTIONAL,
    ),
    "eos_attn": dict(
        ratio=8, window=16, overlap=8, pooling="eos", adapter={"type": "attn_mlp"}, encoder=LLAMA, **BIDIRECTIONAL
    ),
    "untied": dict(ratio=8, window=64, decoder={"tie_embeddings": False, "hidden_size": 96}, **BIDIRECTIONAL),
}
"""Name -> keys of ``ModelConfig`` that differ from the defaults."""

SPAN = "<|memory_start|>{}<|memory_end|>"
_CODE = "for line in file:\n    total += len(line)\n"
PROMPTS: dict[str, str | list[dict[str, Any]]] = {
    "text": "def read(path):\n    ",
    "span": SPAN.format("import os\nimport sys\n\n\ndef main():\n    return os") + "\nGo on: ",
    "twin": SPAN.format("import sys\nimport os\n\n\ndef main():\n    return sys") + "\nGo on: ",
    "long": "Sum " + SPAN.format(_CODE * 12) + "\nis: ",
    "short": SPAN.format("x") + SPAN.format("y = 1") + "!",
    "nothing after": "A mapping " + SPAN.format("from keys to values, which may be anything"),
    "repeated": SPAN.format(_CODE * 3) + " and again " + SPAN.format(_CODE * 3) + ":",
    "unicode": "Größe: " + SPAN.format("naïve café – 東京 \U0001f600") + " → ",
    "chat": [{"role": "user", "content": SPAN.format("x = 1") + " and " + SPAN.format("y")}],
    "turns": [
        {"role": "system", "content": "Notes: " + SPAN.format("the sum is 3")},
        {"role": "user", "content": "What is the sum?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": SPAN.format(_CODE * 2) + "And this?"},
    ],
    "tool": [
        {"role": "user", "content": "Read it."},
        {"role": "assistant", "content": "I look."},
        {"role": "tool", "content": SPAN.format("def main():\n    return 7\n" * 4)},
        {"role": "user", "content": "So?"},
    ],
    "special": "<|im_start|>user\n" + SPAN.format("a <|im_end|> in a span") + "<|im_end|>\n",
}
"""Twelve kinds of prompts."""
TEXT = (
    "def read(path):\n    import os\n for line in file: total += len(line) a mapping from keys to values, the sum is "
)


def tiny_export(name: str, folder: Path, dtype: str = "float32") -> Path:
    """Write the LCLM called ``name`` in ``SETTINGS`` to ``folder``; returns it."""
    tokenizer = folder.with_name(folder.name + "-tokenizer")
    if not tokenizer.exists():
        train_tokenizer([TEXT * 4], 390, tokenizer)
    changes = dict(SETTINGS[name])
    towers = {part: TOWER | changes.pop(part, {}) for part in ("encoder", "decoder")}
    ids = tuple(Tokenizer(tokenizer).memory_ids)
    model = ModelConfig(**towers, **changes, memory_token_ids=ids, compute_dtype="float32")
    rng = np.random.default_rng(sorted(SETTINGS).index(name))
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: _values(rng, path, leaf.shape), abstract_params(model))
    export_model(params, model, folder, decoder_tokenizer=tokenizer, encoder_tokenizer=tokenizer, dtype=dtype)
    return folder


def _values(rng: np.random.Generator, path: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Random values by which no token is its own best successor: small embeddings beside large updates."""
    name = jax.tree_util.keystr(path)
    scale = 0.05 if "embed" in name or "memory_rows" in name else 0.3
    return (rng.normal(scale=scale, size=shape) + ("scale" in name)).astype(np.float32)

"""What one folder needs at its top so that transformers and vLLM load it as one model.

These are ``config.json`` (both towers, the compression, ids, the encoder's fingerprint), ``generation_config.json``
and the decoder's tokenizer. ``lclm_jax`` has the same module, which writes them with an export; a test holds the two
equal.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from lclm_serving.types import JsonObject

ARCHITECTURE = "LclmForConditionalGeneration"
MODEL_TYPE = "lclm"
MEMORY_TOKENS = {
    "memory_start_id": "<|memory_start|>",
    "memory_end_id": "<|memory_end|>",
    "memory_id": "<|memory|>",
}
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files of ``decoder/`` that are copied to the top."""
DEFAULTS: dict[str, object] = {
    "pooling": "mean",
    "encoder_mask_type": "causal",
    "boundary_overlap": 0,
    "adapter_type": "mlp",
    "num_adapter_layers": 1,
}
"""What ``model_config.json`` may leave out."""
_NOT_OF_THE_MODEL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}


def write_engine_files(folder: Path) -> None:
    """Write the files at the top of a complete LCLM folder; nothing else in it changes.

    Raises:
        ValueError: the folder lacks a part, or its decoder's tokenizer the memory tokens; the message names both.
    """
    values = engine_config(folder)
    for name in COPIED:
        if (folder / "decoder" / name).is_file():
            shutil.copyfile(folder / "decoder" / name, folder / name)
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")  # last: who finds it finds the rest


def engine_config(folder: Path) -> JsonObject:
    """The content of ``config.json`` at the top; raises ``ValueError`` as ``write_engine_files``."""
    if (folder / "lora").is_dir():
        raise ValueError(
            f"{folder} has its LoRA in a folder of its own, which no engine applies to an encoder; export it merged"
        )
    compression = {**DEFAULTS, **_read_json(folder / "model_config.json")}
    for name in ("compression_ratio", "encoder_window_size"):
        if name not in compression:
            raise ValueError(f"{folder / 'model_config.json'} lacks {name}; the encoder cannot be run without it")
    decoder, encoder = (_read_json(folder / part / "config.json") for part in ("decoder", "encoder"))
    known = ("compression_ratio", "encoder_window_size", *DEFAULTS)
    dtype = decoder.get("dtype") or decoder.get("torch_dtype") or "float32"
    values: JsonObject = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "torch_dtype": dtype,
        **{name: compression[name] for name in known},
        **_memory_ids(folder / "decoder"),
        "encoder_pad_id": _pad_id(folder / "encoder") if compression["pooling"] == "eos" else None,
        "text_config": decoder,
        "encoder_config": encoder,
        "tie_word_embeddings": bool(decoder.get("tie_word_embeddings", False)),
    }
    return values | {"fingerprint": fingerprint(folder, values)}


def fingerprint(folder: Path, values: JsonObject) -> str:
    """SHA-256 of all that decides what the encoder makes of a window: weights, tokenizer, shape, how it pools.

    Equal bytes give equal fingerprints, however the weights are cut into files. The window and its overlap are left
    out: they only decide which tokens are read together, and keys of stored latents are made of these.

    Args:
        folder: a complete LCLM folder.
        values: the keys of its ``config.json`` that say how it pools.
    """
    names = ("compression_ratio", "pooling", "encoder_mask_type", "encoder_pad_id")
    shape = {name: value for name, value in values["encoder_config"].items() if name not in _NOT_OF_THE_MODEL}
    settings = {"1": [values[name] for name in names], "shape": shape}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(_tokenizer_bytes(folder / "encoder"))
    for head, path, start, size in sorted(_tensors(folder / "encoder")):
        digest.update(head.encode())
        with path.open("rb") as file:
            file.seek(start)
            while size > 0:
                block = file.read(min(size, 1 << 24))
                if not block:
                    raise ValueError(f"{path} is cut short; fetch it again")
                digest.update(block)
                size -= len(block)
    return digest.hexdigest()


def _tensors(folder: Path) -> Iterator[tuple[str, Path, int, int]]:
    """(name, type and shape; file; first byte; bytes) of every tensor in a folder of safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors; name a complete LCLM folder")
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < path.stat().st_size:
                raise ValueError(f"{path} is no safetensors file; fetch it again")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            yield f"{name} {entry['dtype']} {entry['shape']}\n", path, 8 + length + start, stop - start


def _tokenizer_bytes(folder: Path) -> bytes:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise ValueError(f"{folder} holds no tokenizer.json; name a complete LCLM folder")


def _memory_ids(folder: Path) -> dict[str, int]:
    ids = _token_ids(folder)
    missing = [token for token in MEMORY_TOKENS.values() if token not in ids]
    if missing:
        raise ValueError(f"the tokenizer in {folder} lacks {', '.join(missing)}; name the folder of an LCLM")
    return {name: ids[token] for name, token in MEMORY_TOKENS.items()}


def _pad_id(folder: Path) -> int:
    """The marker of ``eos`` pooling: the encoder's padding token, or its end token where it has none."""
    values, ids = _read_json(folder / "tokenizer_config.json"), _token_ids(folder)
    token = values.get("pad_token") or values.get("eos_token")
    token = token["content"] if isinstance(token, dict) else token
    if token not in ids:
        raise ValueError(f"{folder} has the padding token {token!r}, which its tokenizer does not know; correct it")
    return ids[token]


def _token_ids(folder: Path) -> dict[str, int]:
    values = _read_json(folder / "tokenizer.json")
    vocabulary = values.get("model", {}).get("vocab", {})
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    return ids | {token["content"]: token["id"] for token in values.get("added_tokens", [])}


def _read_json(path: Path) -> JsonObject:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; name a complete LCLM folder") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; fetch it again")
    return values

"""The files beside foreign weights and ``config.json``: what they say is understood, harmless, or refused."""

import logging
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.interop.foreign.keys import (
    GENERATION_HARMLESS,
    MAP_HARMLESS,
    PICKS_TOKENS,
    SPECIAL_NAMES,
    TOKENIZER_FIXED,
    TOKENIZER_HARMLESS,
    check_keys,
    shown,
)
from lclm_jax.interop.hf_config import read_json
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.text.sentencepiece import model_in
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"


def check_files(folder: Path, rows: int) -> None:
    """Check the tokenizer's files and ``generation_config.json`` of a model folder.

    Args:
        folder: the model's.
        rows: of its embedding table.

    Raises:
        CheckpointError: a key is not known, has a value that is not supported, or two files disagree about an id; the
            message names file, key and value.
    """
    generation = folder / GENERATION
    if generation.is_file():
        values = read_json(generation)
        check_keys(generation, values, GENERATION_HARMLESS, PICKS_TOKENS, "generation")
        stops = values.get("eos_token_id")
        listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
        odd = [one for one in listed if not isinstance(one, int) or isinstance(one, bool) or one < 0]
        if odd or any(one >= rows for one in listed):
            raise CheckpointError(
                f"{generation}: eos_token_id={shown(stops)} is not a list of ids below the {rows} rows of the model's"
                " table; correct it"
            )
    tokenizer = Tokenizer(folder, memory_tokens=False)
    config = folder / "tokenizer_config.json"
    named: JsonObject = {}
    if config.is_file():
        named = read_json(config)
        known = {*TOKENIZER_HARMLESS, *(name for name in named if name.endswith(("_token", "_token_id")))}
        check_keys(config, named, known, TOKENIZER_FIXED, "a tokenizer")
        if isinstance(named.get("add_bos_token"), bool) and named["add_bos_token"] != (tokenizer.bos_id is not None):
            log.warning(
                "%s: add_bos_token=%r, but the post-processor in tokenizer.json %s, and that is what counts",
                *(config, named["add_bos_token"], "puts none" if tokenizer.bos_id is None else "puts one"),
            )
    listed_map = folder / "special_tokens_map.json"
    if listed_map.is_file():
        _check_map(listed_map, named)
    if model_in(folder) is None:
        for path, token, index in _listed_ids(folder, tokenizer, named):
            if tokenizer.token_id(token) != index:
                raise CheckpointError(
                    f"{path}: token {token!r} has id {index}, in tokenizer.json {tokenizer.token_id(token)}; export the"
                    " tokenizer again"
                )
        for name in SPECIAL_NAMES:
            content = _content(named.get(name))
            if content is not None and tokenizer.token_id(content) is None:
                raise CheckpointError(
                    f"{config}: {name}={content!r} is not in tokenizer.json; add it there, or name another token"
                )


def _check_map(path: Path, named: JsonObject) -> None:
    values = read_json(path)
    check_keys(path, values, {*MAP_HARMLESS, *(n for n in values if n.endswith("_token"))}, {}, "a tokenizer")
    for name in SPECIAL_NAMES:
        here, there = _content(values.get(name)), _content(named.get(name))
        if here is not None and here != there:
            log.warning("%s: %s=%r, and tokenizer_config.json says %r, which is what counts", path, name, here, there)


def _listed_ids(folder: Path, tokenizer: Tokenizer, named: JsonObject) -> Iterator[tuple[Path, str, object]]:
    """(file, token, id) of every added token that a file lists."""
    for entry in read_json(folder / "tokenizer.json").get("added_tokens") or []:
        yield folder / "tokenizer.json", entry["content"], entry["id"]
    listed = named.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is no object; export it again")
    for index, entry in listed.items():
        yield folder / "tokenizer_config.json", str(_content(entry)), int(index) if index.isdecimal() else index
    if (folder / "added_tokens.json").is_file():
        for token, index in read_json(folder / "added_tokens.json").items():
            yield folder / "added_tokens.json", token, index


def _content(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None

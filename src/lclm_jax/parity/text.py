"""Comparisons that run no model: tokenizers, chat templates, the processor's ids and labels, the packer's order."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lclm_jax.interop.hf_config import read_json
from lclm_jax.parity.case import IGNORED, Case
from lclm_jax.parity.check import Check, same
from lclm_jax.text.example import placeholder_ranges
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

ANSWER = "Done."
"""The reply with which the reference rendered its chats in full."""


def check_processor(case: Case) -> Iterator[Check]:
    """Ids, spans, positions, latent counts, labels and windows of every sample; then of the batch and packed rows."""
    for name, sample in case.samples.items():
        found = _processed(case, name)
        for quantity, value in found.items():
            if quantity in sample:
                yield same(case.name, f"{name}/{quantity}", value, sample[quantity])
    if "batch" in case.values:
        expected = case.values["batch"]
        rows = [[name] for name in expected["samples"]]
        length = max(len(case.examples[name].tokens) for (name,) in rows)
        found = _laid_out(case, rows, length, case.decoder.pad_id)
        found["memory_positions"] = [_positions(case, row) for row in rows]
        for quantity in found.keys() & expected.keys():
            yield same(case.name, f"batch/{quantity}", found[quantity], expected[quantity])
    if "packed" in case.values:
        expected = case.values["packed"]
        rows = expected["rows"]
        found = _laid_out(case, rows, expected["target_length"], expected["pad_token_id"])
        found["memory_positions"] = [_positions(case, row) for row in rows]
        found["sample_lens"] = [[len(case.examples[name].tokens) for name in row] for row in rows]
        for quantity in found.keys() & expected.keys():
            yield same(case.name, f"packed/{quantity}", found[quantity], expected[quantity])


def check_tokenizers(path: Path, checkpoints: Path) -> Iterator[Check]:
    """Text to ids, ids to text, chat template results, special ids."""
    cases = read_json(path)
    folder = checkpoints / cases["tokenizer_of"]
    decoder, encoder = (Tokenizer.from_folder(folder / part) for part in ("decoder", "encoder"))
    found: dict[str, list] = {}
    expected: dict[str, list] = {}
    for text in cases["texts"]:
        ours = {
            "encoder_ids": encoder.encode(text["text"]).tolist(),
            "decoder_ids": decoder.encode(text["text"]).tolist(),
            "decoded": decoder.decode(text["decoder_ids"]),
            "decoded_skip_special": decoder.decode(text["decoder_ids"], skip_special=True),
        }
        for name in ours.keys() & text.keys():
            found.setdefault(name, []).append(ours[name])
            expected.setdefault(name, []).append(text[name])
    for chat in cases["chats"]:
        answered = [*chat["messages"], {"role": "assistant", "content": ANSWER}]
        ours = {
            "generation_prompt": decoder.render_chat(chat["messages"], add_generation_prompt=True),
            "full_with_answer": decoder.render_chat(answered),
        }
        for name in ours.keys() & chat.keys():
            found.setdefault(name, []).append(ours[name])
            expected.setdefault(name, []).append(chat[name])
    special = cases["decoder_special_ids"]
    found["special_ids"] = [{token: decoder.token_id(token) for token in special}]
    expected["special_ids"] = [special]
    found["pad_and_eos"] = [encoder.pad_id, decoder.pad_id, decoder.eos_id]
    expected["pad_and_eos"] = [cases["encoder_pad_id"], cases["decoder_pad_id"], cases["decoder_eos_id"]]
    for name in sorted(found):
        yield same("tokenizer_cases", name, found[name], expected[name])


def check_packing(path: Path) -> Iterator[Check]:
    """Which samples the reference's greedy packer puts together."""
    for number, values in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        seed = values["random_seed"] if values["shuffle"] else None
        found = pack_in_order(values["seq_lens"], values["max_packed_length"], seed)
        yield same("pack_sequences", f"batches/{number}", found, values["batches"])


def pack_in_order(lengths: Sequence[int], limit: int, seed: int | None) -> list[list[int]]:
    """The reference's greedy packer: a batch is closed as soon as the next sample does not fit.

    Ours (``data.packing``) keeps several rows open and fills them better; this one only documents the difference.
    """
    order = list(range(len(lengths)))
    if seed is not None:
        random.Random(seed).shuffle(order)  # noqa: S311 - the reference's generator, no secret
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if lengths[index] > limit:
            continue
        if not batches or lengths[index] > room:
            batches.append([])
            room = limit
        batches[-1].append(index)
        room -= lengths[index]
    return batches


def _processed(case: Case, name: str) -> JsonObject:
    sample, example = case.samples[name], case.examples[name]
    ranges = placeholder_ranges(example.tokens, case.decoder.memory_ids.placeholder)
    found: JsonObject = {
        "input_ids": example.tokens,
        "labels": None if sample["kind"] == "prompt" else case.labels(name),
        "memory_token_ids": list(example.spans),
        "memory_positions": ranges,
        "latent_counts": [stop - start for start, stop in ranges],
        "embed_token_counts": [len(span) for span in example.spans],
        "windows": case.windows(name),
    }
    if "path" not in sample:
        found["prompt_input_ids"] = case.prompt(name).tokens
    if sample["kind"] != "cpt":
        prompt = case.decoder.render_chat(sample["messages"], add_generation_prompt=True)
        found["prompt_text"] = prompt
    if sample["kind"] == "sft":
        chat = [*sample["messages"], {"role": "assistant", "content": sample["target"]}]
        found["target_text"] = case.decoder.render_chat(chat)[len(prompt) :]
    return found


def _laid_out(case: Case, rows: Sequence[Sequence[str]], length: int, pad_id: int) -> JsonObject:
    """Padded ids, attention mask, labels and latent counts of rows, read back from our batch where it has them."""
    batch = case.batch(rows, length)
    filled = batch.decoder_segments[:, :length] > 0
    ids = np.where(filled, batch.decoder_tokens[:, :length], pad_id)
    labels = np.full((len(rows), length), IGNORED)
    labels[:, 1:] = np.where(batch.loss_weights[:, : length - 1] > 0, batch.targets[:, : length - 1], IGNORED)
    counts: list[list[int]] = []
    for index, row in enumerate(rows):
        start = 0
        for name in row:  # first tokens have a label in the reference, though nothing in their sample predicts them
            labels[index, start] = case.labels(name)[0]
            start += len(case.examples[name].tokens)
        counts.append([stop - begin for begin, stop in _positions(case, row)])
    return {"input_ids": ids, "attention_mask": filled.astype(int), "labels": labels, "latent_counts": counts}


def _positions(case: Case, row: Sequence[str]) -> list[list[int]]:
    """Placeholders of every span of a row."""
    found: list[list[int]] = []
    start = 0
    for name in row:
        tokens = case.examples[name].tokens
        ranges = placeholder_ranges(tokens, case.decoder.memory_ids.placeholder)
        found += [[start + begin, start + stop] for begin, stop in ranges]
        start += len(tokens)
    return found

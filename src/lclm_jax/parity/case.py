"""A case of the reference outputs, loaded: model, tokenizers, our examples, and batches made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.data.packing.rows import assemble_batch
from lclm_jax.data.packing.windows import plan_spans, plan_windows
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_config import read_json
from lclm_jax.interop.load import load_hf
from lclm_jax.text.example import (
    Example,
    chat_example,
    cpt_example,
    expand,
    latent_count,
    outline_pieces,
    prompt_example,
)
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, Piece, split_memory
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject, ReadOnlyJson

IGNORED = -100
"""Label of a token without loss, in the reference."""


@dataclass(frozen=True)
class Case:
    """Everything that the comparisons of one ``case.json`` need."""

    name: str
    values: ReadOnlyJson
    model: ModelConfig
    params: dict
    decoder: Tokenizer
    encoder: Tokenizer

    @property
    def samples(self) -> dict[str, ReadOnlyJson]:
        """Sample id -> what the reference says about it."""
        return {sample["id"]: sample for sample in self.values["samples"]}

    @cached_property
    def examples(self) -> dict[str, Example]:
        """Sample id -> our example."""
        return {name: self._example(sample) for name, sample in self.samples.items()}

    def _example(self, sample: ReadOnlyJson) -> Example:
        common = (self.decoder, self.encoder, self.model.ratio)
        if sample["kind"] == "cpt":
            return cpt_example(sample["text"], *common)
        if sample["kind"] == "sft":
            return chat_example(sample["messages"], *common, target=sample["target"])
        if sample["kind"] == "prompt":
            return self._prompt_example(sample, sample["messages"])
        raise LclmError(f"{self.name}: sample kind {sample['kind']!r} is not sft, cpt or prompt")

    def prompt(self, name: str) -> Example:
        """Where generation of a sample starts."""
        sample = self.samples[name]
        source = sample["text"] if sample["kind"] == "cpt" else sample["messages"]
        return self._prompt_example(sample, source)

    def _prompt_example(self, sample: ReadOnlyJson, prompt: str | Sequence[ReadOnlyJson]) -> Example:
        """On the reference's prompt-embedding path, spans may be empty."""
        make = empty_span_prompt_example if "path" in sample else prompt_example
        return make(prompt, self.decoder, self.encoder, self.model.ratio)

    def labels(self, name: str) -> np.ndarray:
        """Labels as the reference writes them: the first token of raw text has one, though nothing predicts it."""
        example = self.examples[name]
        labels = np.where(example.loss > 0, example.tokens, IGNORED)
        if self.samples[name]["kind"] == "cpt" and example.tokens[0] != self.decoder.memory_ids.start:
            labels[0] = example.tokens[0]
        return labels

    def windows(self, name: str) -> list[list[JsonObject]]:
        """Windows of every span as the reference writes them."""
        return [self._windows(span) for span in self.examples[name].spans]

    def _windows(self, span: np.ndarray) -> list[JsonObject]:
        found = []
        for window in plan_windows(len(span), self.model) if len(span) else []:
            read = window.right - window.left
            ids = [*span[window.left : window.right].tolist(), *[self.encoder.pad_id] * window.markers]
            markers = list(range(read, read + window.markers))
            pooled = {"pool_start": window.pool_start, "pool_len": window.pool_len}
            found.append({"input_ids": ids, **pooled, "markers": markers})
        return found

    def batch(self, rows: Sequence[Sequence[str]], row_length: int | None = None) -> Batch:
        """Our batch of packed rows of samples; ``row_length``: at least this many decoder positions."""
        examples = [[self.examples[name] for name in row] for row in rows]
        return case_batch(examples, self.model, self.encoder.pad_id, row_length)

    def boundaries(self, rows: Sequence[Sequence[str]]) -> list[JsonObject]:
        """Where the reference asks a sample's last token for the next sample's first: that one must have a label."""
        found = []
        for index, row in enumerate(rows):
            start = 0
            for before, name in pairwise(row):
                start += len(self.examples[before].tokens)
                if self.labels(name)[0] != IGNORED:
                    found.append({"row": index, "label_position": start, "sample": name})
        return found


def empty_span_prompt_example(
    prompt: str | Sequence[ReadOnlyJson], decoder: Tokenizer, encoder: Tokenizer, ratio: int
) -> Example:
    """``prompt_example``, but a span without text has one placeholder instead of being refused."""
    text = prompt if isinstance(prompt, str) else decoder.render_chat(prompt, add_generation_prompt=True)
    pieces: list[Piece] = []
    for part in text.split(MEMORY_START + MEMORY_END):
        pieces += [*split_memory(part), Piece("span", "")]
    return expand(outline_pieces(pieces[:-1], decoder, encoder), ratio, decoder.memory_ids.placeholder)


def load_case(folder: Path, checkpoints: Path, changes: ReadOnlyJson | None = None) -> Case:
    """Read ``folder/case.json``, its keys replaced by ``changes``, and the checkpoint it names.

    Raises ``LclmError`` if either cannot be read.
    """
    values = {**read_json(folder / "case.json"), **(changes or {})}
    checkpoint = checkpoints / values["checkpoint"]
    model, params = load_hf(checkpoint, values["model_config"], compute_dtype="float32", remat="none")
    decoder, encoder = (Tokenizer.from_folder(checkpoint / part) for part in ("decoder", "encoder"))
    return Case(folder.name, values, model, params, decoder, encoder)


def case_batch(
    rows: Sequence[Sequence[Example]], model: ModelConfig, pad_id: int, row_length: int | None = None
) -> Batch:
    """A batch of exactly the rows and positions that ``rows`` need (``row_length``: at least so many)."""
    length = max(2, row_length or 0, *(sum(len(e.tokens) for e in row) for row in rows))
    tables = [plan_spans([max(1, len(s)) for e in row for s in e.spans], model) for row in rows]
    width = max((int((t.storage + 2 * model.alignment).sum()) for t in tables), default=0)
    width = max(model.alignment, -(-width // model.alignment) * model.alignment)
    return assemble_any(rows, model, PackConfig(row_length=length, encoder_rows=1, encoder_row_length=width), pad_id)


def assemble_any(rows: Sequence[Sequence[Example]], model: ModelConfig, pack: PackConfig, pad_id: int) -> Batch:
    """``assemble_batch`` that also takes empty spans, whatever the pooling: each gets one latent that pools nothing.

    Such a span is laid out as one token (whose windows ``pack`` must have room for) without a pool weight, so that its
    latent is the adapter's image of a zero vector, as on the reference's prompt-embedding path.
    """
    token = np.array([pad_id], np.int32)
    filled = [[Example(e.tokens, e.loss, tuple(s if len(s) else token for s in e.spans)) for e in row] for row in rows]
    batch = assemble_batch(filled, model, pack, pad_id)
    for index, row in enumerate(rows):
        spans = [span for example in row for span in example.spans]
        for span, slots in zip(
            spans, span_slots(batch, index, [latent_count(len(s), model.ratio) for s in spans]), strict=True
        ):
            if not len(span):
                batch.pool_weights[index].reshape(-1, model.ratio)[slots] = 0
    return batch


def span_slots(batch: Batch, row: int, counts: Sequence[int]) -> list[np.ndarray]:
    """Latent slots of each span of a row, in text order."""
    index = batch.latent_index[row]
    return np.split(index[index >= 0], np.cumsum(counts)[:-1]) if len(counts) else []

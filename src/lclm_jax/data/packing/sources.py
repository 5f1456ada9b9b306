"""Sources: how the records of a prepared collection become examples, and how long each will be.

Examples are planned from lengths and cut points alone (``plan``), for any records without the others; a planned example
is a small reference (record, variant, cut bounds) from which ``example`` makes the tokens when its row is needed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lclm_jax.config import Config, ModelConfig, PackConfig, SourceConfig, result_values
from lclm_jax.data.packing.counter_rng import draw_key, permutation, uniform
from lclm_jax.data.packing.row_packer import ExampleWindows, RowPacker
from lclm_jax.data.packing.span_sampling import (
    CutTable,
    Limits,
    SampledExamples,
    make_cut_table,
    quote_in_span,
    sample_segments,
    sample_spans,
    span_ratios,
)
from lclm_jax.data.store.columns import Ragged, join
from lclm_jax.data.store.records import chat_outline_of
from lclm_jax.data.store.shards import PreparedSplit, open_split
from lclm_jax.errors import LclmError
from lclm_jax.text.boundaries import FLAGS
from lclm_jax.text.example import DocumentTokens, Example, Segment, cpt_example_from_ids, expand
from lclm_jax.text.outline import Outline
from lclm_jax.text.prompts import (
    RepetitionPrompt,
    continuation_prompts,
    reconstruction_example_from_ids,
    repetition_prompts,
)
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject

EXAMPLE_COLUMNS = ("source", "record", "variant", "tokens", "encoder_tokens", "raw_tokens")
"""What planning tells of each example."""
_ORDERS = 60_000
"""Different orders of the passages of a record (a variant has 16 bits)."""


class ExampleRef(NamedTuple):
    """What a row index stores of one example."""

    source: int
    """Index of the source in the stage's mixture."""
    record: int
    variant: int
    """cpt: 1 if the first segment is compressed; reconstruction: which request; qa: order of the passages; chat: number
    of the draw of the spans' ratios, 0 if none is made."""
    bounds: np.ndarray
    """int32: cut indices between which the segments lie; empty for chat."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All examples of some records of a source in one epoch, without their tokens; columns of one length."""

    record: np.ndarray
    variant: np.ndarray
    bounds: Ragged
    tokens: np.ndarray
    """int64 [examples]: decoder positions, tags and placeholders included."""
    spans: Ragged
    """int64: encoder tokens of each span."""
    raw_tokens: np.ndarray
    """int64 [examples]: tokens of text represented: decoder tokens without placeholders, and encoder tokens."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Examples left out while planning, by reason."""


def join_plans(plans: Sequence[tuple[int, Plan]]) -> tuple[dict[str, np.ndarray], Ragged]:
    """Columns of the examples of all plans, and the lengths of their spans."""
    if not plans:
        return {name: np.zeros(0, np.int64) for name in EXAMPLE_COLUMNS}, join([])
    columns = {
        "source": np.concatenate([np.full(plan.record.size, number) for number, plan in plans]),
        "encoder_tokens": np.concatenate([plan.spans.sums() for _, plan in plans]),
    }
    for name in ("record", "variant", "tokens", "raw_tokens"):
        columns[name] = np.concatenate([getattr(plan, name) for _, plan in plans])
    return columns, join([plan.spans for _, plan in plans])


def row_groups(sources: Sequence["Source"]) -> np.ndarray:
    """Number of the group of each source, int64 [sources]: only examples of one group share a row."""
    if not sources[0].setup.pack.by_category:
        return np.zeros(len(sources), np.int64)
    return np.unique([source.config.category or source.name for source in sources], return_inverse=True)[1]


class Source(ABC):
    """One collection under one objective; see ``make_sources``."""

    def __init__(self, name: str, config: SourceConfig, split: PreparedSplit, setup: "SourceSetup"):
        self.name, self.config, self.split, self.setup = name, config, split, setup

    @abstractmethod
    def plan(self, epoch: int, records: np.ndarray) -> Plan:
        """All examples that ``records`` give in ``epoch``.

        What a record gives is a pure function of (seed, source, epoch, record) and its lengths.
        """

    @abstractmethod
    def example(self, ref: ExampleRef, columns: Mapping[str, np.ndarray]) -> Example:
        """The example ``ref`` of the record ``columns`` at the model's ratio."""

    def __len__(self) -> int:
        """Records of one epoch."""
        return len(self.split)

    def inputs(self) -> JsonObject:
        """What the examples of this source and their order depend on beside the set-up, as plain values."""
        return {"name": self.name, "config": result_values(self.config), "data": self.split.digest}

    def _ratios(self, model: ModelConfig, record: np.ndarray | int, *place: np.ndarray | int) -> int | np.ndarray:
        key = draw_key(self.setup.seed, self.name, "span ratios")
        return span_ratios(model, self.config.spans, key, record, *place)

    def _key(self, epoch: int) -> int:
        return draw_key(self.setup.seed, self.name, epoch)

    @property
    def _positions(self) -> int:
        row = self.setup.pack.row_length
        return row if self.config.max_tokens is None else min(row, self.config.max_tokens)


@dataclass(frozen=True, eq=False)
class SourceSetup:
    """What all sources of a stage share."""

    model: ModelConfig
    pack: PackConfig
    tokenizers: Tokenizers
    seed: int
    part: tuple[int, int] = (0, 1)
    """(k, n): examples are made of part k of n of the records of each epoch."""
    planned: ModelConfig | None = None
    """Compression that rows are planned for; None: that of ``model``."""

    @property
    def plan_model(self) -> ModelConfig:
        """The model that examples are measured with."""
        return self.planned or self.model


class _DocumentSource(Source):
    def _cuts(self, records: np.ndarray) -> CutTable:
        decoder = self.split.lists("cuts", records)
        if decoder is None:
            raise LclmError(
                f"source {self.name}: objective={self.config.objective} cuts documents, which collection"
                f" {self.config.collection!r} does not hold; use a collection of documents or objective=chat"
            )
        encoder = self.split.lists("encoder_cuts", records)
        table = make_cut_table(records, decoder, decoder if encoder is None else encoder)
        if self.config.spans.boundary == "token":
            return table
        kinds = self.split.lists("cut_kinds", records)
        assert kinds is not None, "documents have kinds of cuts"
        return table._replace(preferred=np.flatnonzero(kinds.values & FLAGS[self.config.spans.boundary]))


class CptSource(_DocumentSource):
    """Continual pre-training: documents cut into examples of alternating raw and compressed segments."""

    def plan(self, epoch: int, records: np.ndarray) -> Plan:  # noqa: D102 - see the base class
        cuts = self._cuts(records)
        model, pack = self.setup.plan_model, self.setup.pack
        context = model.overlap * (2 if model.mask == "bidirectional" else 1)
        encoder_positions = pack.encoder_rows * pack.encoder_row_length
        limits = Limits(
            self._positions - self._opening, model.ratio, model.window, context, model.has_markers, encoder_positions
        )
        sampled = sample_segments(cuts, self.config.spans, limits, self._key(epoch))
        plan = self._plan(cuts, sampled)
        while (halves := self._halve_oversized(sampled, plan)) is not None:
            sampled = halves
            plan = self._plan(cuts, sampled)
        return plan

    def example(self, ref: ExampleRef, columns: Mapping[str, np.ndarray]) -> Example:  # noqa: D102
        bounds = ref.bounds.tolist()
        segments = [Segment(bool(ref.variant ^ i & 1), bounds[i], bounds[i + 1]) for i in range(len(bounds) - 1)]
        document, decoder = DocumentTokens.from_record(columns), self.setup.tokenizers.decoder
        n = self._ratios(self.setup.model, ref.record, np.array([s.start for s in segments if s.compressed]))
        return cpt_example_from_ids(document, segments, decoder.memory_ids, n, decoder.bos_id)

    def inputs(self) -> JsonObject:  # noqa: D102
        bos_id = self.setup.tokenizers.decoder.bos_id
        return super().inputs() | ({} if bos_id is None else {"bos_id": bos_id})

    @property
    def _opening(self) -> int:
        """Positions before the segments: one if the decoder's tokenizer begins a text with a BOS token."""
        return 0 if self.setup.tokenizers.decoder.bos_id is None else 1

    def _plan(self, cuts: CutTable, sampled: SampledExamples) -> Plan:
        sizes = sampled.bounds.sizes - 1
        where = sampled.bounds.values + np.repeat(cuts.first[sampled.document], sampled.bounds.sizes)
        ends = np.cumsum(sampled.bounds.sizes)
        start, stop = np.delete(where, ends - 1), np.delete(where, ends - sampled.bounds.sizes)
        place = np.arange(start.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        compressed = np.repeat(sampled.opens_compressed, sizes) ^ (place % 2 == 1)
        decoder, encoder = cuts.decoder[stop] - cuts.decoder[start], cuts.encoder[stop] - cuts.encoder[start]
        record = cuts.record[sampled.document]
        at = np.repeat(record, sizes), np.delete(sampled.bounds.values, ends - 1)
        ratios = self._ratios(self.setup.plan_model, *at)
        cost = np.where(compressed, -(-encoder // ratios) + 2, decoder)
        spans = Ragged.from_sizes(Ragged.from_sizes(sizes, compressed).sums(), encoder[compressed])
        return Plan(
            record=record,
            variant=sampled.opens_compressed.astype(np.int64),
            bounds=sampled.bounds,
            tokens=self._opening + Ragged.from_sizes(sizes, cost).sums(),
            spans=spans,
            raw_tokens=self._opening + Ragged.from_sizes(sizes, np.where(compressed, encoder + 2, decoder)).sums(),
        )

    def _halve_oversized(self, sampled: SampledExamples, plan: Plan) -> SampledExamples | None:
        """Cut each example whose windows do not fit a row in two, before a span; None if there is none to cut."""
        packer = RowPacker(self.setup.plan_model.alignment, self.setup.pack)
        usable, _ = packer.find_packable(plan.tokens, ExampleWindows(plan.spans, self.setup.plan_model))
        halved, parts, opens = [], [], []
        for i in np.delete(np.arange(plan.tokens.size), usable).tolist():
            bounds = sampled.bounds.list(i)
            first = int(sampled.opens_compressed[i])
            spans = [k for k in range(1, bounds.size - 1) if (k % 2 == 0) == bool(first)]
            if not spans:
                continue
            middle = spans[len(spans) // 2]
            halved.append(i)
            parts += [bounds[: middle + 1], bounds[middle:]]
            opens += [bool(first), True]
        if not halved:
            return None
        kept = np.delete(np.arange(sampled.document.size), halved)
        sizes = np.array([part.size for part in parts])
        return SampledExamples(
            np.append(sampled.document[kept], np.repeat(sampled.document[halved], 2)),
            np.append(sampled.opens_compressed[kept], opens),
            join([sampled.bounds.take(kept), Ragged.from_sizes(sizes, np.concatenate(parts))]),
        )


class RepetitionSource(_DocumentSource):
    """Reconstruction: consecutive spans of the documents, each to be repeated verbatim, as a whole or from a quotation.

    Variants count the prompts that repeat the whole first, then those that quote; bounds of a partial one are
    (span start, span stop, quotation start, quotation stop).
    """

    def plan(self, epoch: int, records: np.ndarray) -> Plan:  # noqa: D102
        cuts = self._cuts(records)
        sampled = sample_spans(cuts, self.config.spans, self._key(epoch))
        record, bounds = cuts.record[sampled.document], sampled.bounds.values.reshape(-1, 2)
        start, stop = bounds.T + cuts.first[sampled.document]
        prompt, kind, begin = (uniform(self._key(epoch) ^ salt, record, bounds[:, 0]) for salt in (1, 2, 3))
        quote = quote_in_span(cuts.decoder, (start, stop), self.config.quote_tokens, begin)
        partial = (kind < self.config.partial_share) & (quote[1] < stop)
        overhead = np.array([prompt.overhead for prompt in self._prompts])
        whole = len(repetition_prompts(self.setup.tokenizers.decoder))
        of_partial = whole + (prompt * (overhead.size - whole)).astype(np.int64)
        variant = np.where(partial, of_partial, (prompt * whole).astype(np.int64))
        encoder, decoder = cuts.encoder[stop] - cuts.encoder[start], cuts.decoder[stop] - cuts.decoder[start]
        # Of a partial one the quotation and what follows it are read, of a whole one all.
        decoder = np.where(partial, cuts.decoder[stop] - cuts.decoder[quote[0]], decoder)
        ratios = self._ratios(self.setup.plan_model, record, bounds[:, 0])
        tokens = overhead[variant] + -(-encoder // ratios) + decoder
        fits = tokens <= self._positions
        four = np.stack([start, stop, *quote], axis=1) - cuts.first[sampled.document][:, None]
        used = np.stack([fits, fits, partial & fits, partial & fits], axis=1)
        return Plan(
            record=record[fits],
            variant=variant[fits],
            bounds=Ragged.from_sizes(used[fits].sum(axis=1), four[used].astype(np.int32)),
            tokens=tokens[fits],
            spans=Ragged(np.arange(int(fits.sum()) + 1), encoder[fits]),
            raw_tokens=(overhead[variant] + decoder + encoder)[fits],
            dropped={"longer_than_example": int(fits.size - fits.sum())},
        )

    def example(self, ref: ExampleRef, columns: Mapping[str, np.ndarray]) -> Example:  # noqa: D102
        bounds = np.asarray(ref.bounds).tolist()
        segment, quote = Segment(True, *bounds[:2]), Segment(False, *bounds[2:]) if len(bounds) == 4 else None
        decoder, document = self.setup.tokenizers.decoder, DocumentTokens.from_record(columns)
        prompt, ratio = (
            self._prompts[ref.variant],
            self._ratios(self.setup.model, ref.record, np.array([segment.start])),
        )
        return reconstruction_example_from_ids(prompt, document, segment, decoder.memory_ids, ratio, quote)

    def inputs(self) -> JsonObject:  # noqa: D102
        parts = [[p.head, p.tail, p.closing, p.after_quote] for p in self._prompts]
        return super().inputs() | {"prompts": [[one.tolist() for one in part if one is not None] for part in parts]}

    @property
    def _prompts(self) -> tuple[RepetitionPrompt, ...]:
        decoder = self.setup.tokenizers.decoder
        return (*repetition_prompts(decoder), *(continuation_prompts(decoder) if self.config.partial_share else ()))


class ChatSource(Source):
    """Prepared chats: one record, one example. Objective ``qa``: its passages in another order each epoch."""

    def plan(self, epoch: int, records: np.ndarray) -> Plan:  # noqa: D102
        spans = self.split.lists("span_tokens", records)
        if spans is None:
            raise LclmError(
                f"source {self.name}: objective=chat needs prepared chats, which collection"
                f" {self.config.collection!r} does not hold; use collection=chat or another objective"
            )
        tokens = self.split.numbers("decoder_tokens", records)
        variant = self._variants(epoch, np.asarray(records, np.int64))
        of_span = [np.repeat(column, spans.sizes) for column in (records, variant)]
        ratios = self._ratios(self.setup.plan_model, *of_span, spans.places())
        positions = tokens + Ragged(spans.offsets, -(-spans.values // ratios)).sums()
        fits = np.flatnonzero(positions <= self._positions)
        return Plan(
            record=np.asarray(records, np.int64)[fits],
            variant=variant[fits],
            bounds=Ragged.from_sizes(np.zeros_like(fits), np.zeros(0, np.int32)),
            tokens=positions[fits],
            spans=spans.take(fits),
            raw_tokens=(tokens + spans.sums())[fits],
            dropped={"longer_than_example": positions.size - fits.size},
        )

    def example(self, ref: ExampleRef, columns: Mapping[str, np.ndarray]) -> Example:  # noqa: D102
        outline = chat_outline_of(columns)
        ratio = self._ratios(self.setup.model, ref.record, ref.variant, np.arange(len(outline.spans)))
        if self.config.objective == "qa" and ref.variant:
            order = self._passages(outline, ref.variant)
            outline = replace(outline, spans=tuple(outline.spans[i] for i in order.tolist()))
            ratio = ratio if isinstance(ratio, int) else ratio[order]
        return expand(outline, ratio, self.setup.tokenizers.decoder.memory_ids.placeholder)

    def _passages(self, outline: Outline, variant: int) -> np.ndarray:
        """The order ``variant`` of the passages: those of one message change places among themselves.

        A reply or a special token of the template lies between two messages.
        """
        decoder = self.setup.tokenizers.decoder
        between = (outline.loss > 0) | np.isin(outline.tokens, np.setdiff1d(decoder.special_ids, decoder.memory_ids))
        message = np.cumsum(between)[outline.gaps]
        turns = np.split(np.arange(len(outline.spans)), np.flatnonzero(np.diff(message)) + 1)
        if len(turns) == 1:
            return permutation(draw_key("passages", variant), len(outline.spans))
        keys = [draw_key("passages", variant, turn) for turn in range(len(turns))]
        return np.concatenate([turn[permutation(key, len(turn))] for key, turn in zip(keys, turns, strict=True)])

    def _variants(self, epoch: int, records: np.ndarray) -> np.ndarray:
        """Number of the order of each record's passages (qa), or of the draw of its spans' ratios, int64."""
        if self.config.objective != "qa":
            return np.full_like(records, epoch % _ORDERS if self.setup.model.span_ratios else 0)
        return 1 + (uniform(self._key(epoch), records) * _ORDERS).astype(np.int64)


OBJECTIVES: dict[str, type[Source]] = {
    "cpt": CptSource,
    "reconstruction": RepetitionSource,
    "chat": ChatSource,
    "qa": ChatSource,
}


def make_sources(
    config: Config,
    stage: str,
    tokenizers: Tokenizers,
    split: str = "train",
    part: tuple[int, int] = (0, 1),
    generation: int | None = None,
) -> list[Source]:
    """The sources of a stage's mixture, in its order; collections are opened once.

    ``part``: see ``SourceSetup``; ``generation``: see ``PreparedSplit``.

    Raises:
        LclmError: A collection is not prepared, or does not suit its source's objective.
    """
    model = config.model.model_copy(update={"memory_token_ids": tuple(tokenizers.decoder.memory_ids)})
    setup = SourceSetup(model, config.pack(stage), tokenizers, config.seed, part, config.planned(model))
    opened: dict[str, PreparedSplit] = {}
    sources = []
    for name in config.stages[stage].sources:
        source = config.data.sources[name]
        if source.collection not in opened:
            opened[source.collection] = open_split(config, source.collection, split, generation)
        sources.append(OBJECTIVES[source.objective](name, source, opened[source.collection], setup))
    return sources

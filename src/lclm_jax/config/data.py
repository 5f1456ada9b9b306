"""Tokenizers, sources with their objectives, and the shape of a packed row."""

from typing import Literal, get_args

from pydantic import model_validator

from lclm_jax.config.base import Tree, key, required, suggestion
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.types import JsonObject


class TokenizerConfig(Tree, role="result"):
    """Tokenizer folders (tokenizer.json, or a SentencePiece model); trained on the corpus when vocab_size is given."""

    decoder: str | None = key(
        None, "Folder or SentencePiece model of the decoder's tokenizer; null: the run trains one.", role="place"
    )
    encoder: str | None = key(None, "Folder of the encoder's tokenizer; null: the decoder's.", role="place")
    vocab_size: int | None = key(None, "Train a byte-level BPE of this size on the corpus (decoder: null).")
    train_bytes: int = key(2**30, "Text that a tokenizer is trained on, at most: a share of every file.", gt=0)
    chat_template: str | None = key(
        None,
        "Name of the decoder's chat template where its folder has several; null: tool_use for chats with tools if there"
        " is one, else default.",
        added=True,
    )
    tools: bool = key(
        False,
        "Give the tokenizer that is trained (vocab_size) a chat template that prints tools, calls and results.",
        added=True,
    )

    @model_validator(mode="after")
    def _check(self):
        if (self.decoder is None) == (self.vocab_size is None):
            raise ValueError(
                f"tokenizer.decoder={self.decoder!r} and tokenizer.vocab_size={self.vocab_size}: exactly one is"
                " needed; name a tokenizer folder, or the size of one to train"
            )
        if self.tools and self.vocab_size is None:
            raise ValueError(
                f"tokenizer.tools=true with tokenizer.decoder={self.decoder!r}: a folder brings its template; leave"
                " tools out"
            )
        return self


class SpanConfig(Tree, role="result"):
    """Law of span and segment lengths, in encoder tokens, and of the spans' ratios."""

    law: Literal["fixed", "uniform", "log_uniform"] = key("uniform", "Distribution of the length of a span.")
    min_tokens: int = key(8, "Shortest span.", gt=0)
    max_tokens: int = key(64, "Longest span (and the length, for the law fixed).", gt=0)
    raw_min_tokens: int = key(8, "Shortest raw segment between spans (cpt).", gt=0)
    raw_max_tokens: int = key(64, "Longest raw segment between spans (cpt).", gt=0)
    first: Literal["raw", "compressed", "either"] = key("either", "Which kind of segment opens an example (cpt).")
    ratio: int | None = key(
        None,
        "N of the spans, one of model.span_ratios; null: each span draws one of these, all equally often (where there"
        " are none, model.ratio).",
        added=True,
        gt=0,
    )
    raw_share: float = key(0.0, "Share of examples left uncompressed, so that raw context is learned too.", ge=0, le=1)
    boundary: Literal["token", "sentence", "paragraph", "code_block"] = key(
        "token", "Where segments end: where the law says, or at such a place among the lengths that it allows, if any."
    )

    @model_validator(mode="after")
    def _check(self):
        for low, high in (("min_tokens", "max_tokens"), ("raw_min_tokens", "raw_max_tokens")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}; lower the first or raise"
                    " the second"
                )
        return self


Objective = Literal["cpt", "reconstruction", "chat", "qa"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)


class SourceConfig(Tree, role="result"):
    """A prepared collection and the objective it is trained with."""

    collection: str = required("Prepared collection the examples come from (for example documents, chat).")
    objective: Objective = required(
        "cpt: alternating raw and compressed segments; reconstruction: repeat the span; chat: loss on replies; qa: the"
        " same, with the passages of the context in another order each epoch."
    )
    partial_share: float = key(
        0.0, "Share of reconstructions that ask for what follows a quoted part of the span, not for all.", ge=0, le=1
    )
    quote_tokens: int = key(12, "Tokens that a partial reconstruction quotes.", gt=0)
    spans: SpanConfig = key(SpanConfig(), "Span law (cpt and reconstruction).")
    max_tokens: int | None = key(None, "Decoder positions of one example; null: a whole row.")
    when_exhausted: Literal["repeat", "drop", "stop"] = key(
        "repeat", "After its epochs: begin another; leave its share to the other sources; or end the stage."
    )
    epochs: int = key(1, "Passes over the collection before drop or stop.", gt=0)
    category: str | None = key(
        None,
        "Sources of one category share rows where data.pack.by_category is set; null: the source's name.",
        added=True,
    )


class PackConfig(Tree, role="result"):
    """Fixed layout of a packed row."""

    row_length: int = key(16384, "S: decoder positions of a row.", gt=1)
    encoder_rows: int = key(16, "M: encoder rows that travel with a row.", gt=0)
    encoder_row_length: int = key(1024, "R: positions of an encoder row; a multiple of model.ratio.", gt=0)
    block_examples: int = key(32768, "Examples that are shuffled and packed together, at most.", gt=0)
    by_category: bool = key(
        False,
        "A row holds examples of one category of sources alone; false: of any, which fills rows better.",
        added=True,
    )


class RowsFor(Tree, role="result"):
    """Compression settings in the place of the model's where rows are planned; null: the model's."""

    ratio: int | None = key(None, "N; the smallest of the models that share rows.", gt=0)
    window: int | None = key(None, "W; a span's windows are cut by it.", gt=0)
    overlap: int | None = key(None, "O; the largest of them.", ge=0)
    pooling: str | None = key(None, "One with markers (eos), if any of them has markers.")
    mask: Literal["causal", "bidirectional"] | None = key(None, "bidirectional, if any of them reads to the right.")

    @model_validator(mode="after")
    def _check(self):
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"rows_for.pooling={self.pooling!r} is unknown; {suggestion(self.pooling, POOLINGS)}")
        return self

    @property
    def given(self) -> JsonObject:
        """The settings that are not null."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class DataConfig(Tree):
    """Prepared shards and how examples are made and packed."""

    prepared: str | None = key(
        None,
        "Folder of prepared shards, or an fsspec URL such as gs://bucket/folder; null: data/ in the run's folder.",
        role="place",
    )
    cache: str | None = key(
        None, "Local folder for copies of remote shards; null: the user's cache folder.", role="place"
    )
    cache_bytes: int | None = key(
        None, "Bytes of these copies, about: those used longest ago are deleted; null: no limit.", role="layout", gt=0
    )
    copy_shards: bool | None = key(
        None,
        "Copy whole remote shards to this machine before they are read, instead of reading the records that are needed;"
        " null: if cache_bytes is set.",
        role="layout",
        added=True,
    )
    shard_bytes: int = key(64 * 2**20, "Bytes of corpus text that go into one shard.", role="result", gt=0)
    sources: dict[str, SourceConfig] = key({}, "Named sources; stages mix them by weight.")
    pack: PackConfig = key(PackConfig(), "Row layout; a stage may replace it.")
    rows_for: RowsFor = key(
        RowsFor(), "Plan rows as for these settings, so that models that differ in them train on the same rows."
    )
    workers: int = key(0, "Loader worker processes; 0: threads of the trainer.", role="layout", ge=0)
    prefetch: int = key(4, "Batches prepared ahead of the device.", role="layout", ge=0)

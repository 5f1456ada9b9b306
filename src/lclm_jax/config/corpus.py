"""Raw text: the collections of a corpus, the files they are read from, their columns, filters and splits."""

from typing import Literal

from pydantic import model_validator

from lclm_jax.config.base import Tree, key, required
from lclm_jax.types import JsonObject

Format = Literal[
    "jsonl",
    "parquet",
    "arrow",
    "text",
    "python_stdlib",
    "synthetic",
    "recall",
    "variable_tracking",
    "variable_tracking_compressed",
    "variable_tracking_lookups",
    "variable_tracking_compressed_lookups",
]

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "text": (".txt", ".md", ".rst", ".py"),
    "python_stdlib": (),
    "synthetic": (),
    "recall": (),
    "variable_tracking": (),
    "variable_tracking_compressed": (),
    "variable_tracking_lookups": (),
    "variable_tracking_compressed_lookups": (),
}


_WITHOUT_FILES = tuple(name for name, suffixes in _SUFFIXES.items() if not suffixes)


class ColumnsConfig(Tree, role="result"):
    """Which columns of JSONL, Parquet and Arrow rows are read."""

    text: str = key("text", "Text of a document (records: documents).")
    id: str | None = key(None, "Name of a row, kept with its record; null: its file and place in it.")
    messages: str = key("messages", "Chat messages, or the same as JSON (records: chat).")
    tools: str = key("tools", "Tools that the chat template is given; may be missing.")
    prompt: str = key("compression_prompt", "Chat messages with memory tags that end before the reply.")
    target: str = key("target", "Reply to the prompt; NA_string_only: the user's text is itself trained on.")
    context: str = key("context", "Passages to compress: a string or a list of strings (long-context QA).")
    question: str = key("question", "What is asked about the context.")
    answer: str = key("answer", "The reply.")
    language: str | None = key(
        None, "Language of a row, counted in tokens by `lclm data stats`; may be missing in a row.", added=True
    )
    system: str | None = key(
        None, "Text that becomes a system message before the messages; may be missing in a row.", added=True
    )


class MessageConfig(Tree, role="result"):
    """How a message of a chat is written (records: chat)."""

    role: str = key("role", "Key of a message's role, such as from.", added=True)
    content: str = key("content", "Key of a message's text, such as value.", added=True)
    roles: dict[str, str] = key(
        {}, "Roles of other names, such as {human: user, gpt: assistant}; others stay as they are.", added=True
    )
    in_turn: bool = key(
        False, "A list of plain strings is a chat: user and assistant in turn, the user first.", added=True
    )


class ReasoningConfig(Tree, role="result"):
    """Rows whose reply is an analysis and an answer: for a share of them the analysis is compressed (records: chat)."""

    share: float = key(0.5, "Share of the rows, chosen by a hash of the id or the messages.", ge=0, le=1)
    keep_last: int = key(
        128, "Last decoder tokens of a reply that stay raw where neither tags nor a separator end its analysis.", gt=0
    )
    separators: tuple[str, ...] = key(
        (), "Texts at which an answer begins, such as Final Answer:, where no thinking tags end the analysis."
    )

    @model_validator(mode="after")
    def _check(self):
        if not all(self.separators):
            raise ValueError(f"separators={list(self.separators)} holds an empty text; remove it")
        return self


class CollectionConfig(Tree, role="result"):
    """One collection: raw files of one format that become records of one kind."""

    format: Format = required(
        "jsonl (lines or JSON arrays), parquet, arrow (a Hugging Face dataset on disk), text (one document a file),"
        " python_stdlib (sources shipped with Python), synthetic (generated documents that context helps to predict),"
        " recall (generated documents that need exact facts of their beginning, few or many),"
        " variable_tracking (generated chats whose steps need the steps before; records: chat),"
        " variable_tracking_compressed (the same, the first steps compressed) and variable_tracking_lookups (single"
        " steps)."
    )
    paths: tuple[str, ...] = key(
        (), "Files, folders or globs; local, or any fsspec URL such as s3://bucket/a/*.parquet.", role="place"
    )
    suffixes: tuple[str, ...] | None = key(None, "File endings read from a folder; null: those usual for the format.")
    records: Literal["documents", "chat", "function_chat"] = key(
        "documents",
        "documents: text, tokenized with its cuts; chat: messages, prompt and target, or context, question and answer;"
        " function_chat: questions about the functions of Python files.",
    )
    columns: ColumnsConfig = key(ColumnsConfig(), "Columns of the rows.")
    message: MessageConfig = key(MessageConfig(), "Keys of the messages.")
    where: dict[str, tuple[str, ...]] = key(
        {},
        "Read the rows alone whose columns have one of these values, such as {sub_dataset: [wildchat, dolci_think]}.",
        added=True,
    )
    train_on: Literal["replies", "last_reply"] = key(
        "replies", "Replies of a chat with loss: every one of the assistant, or the last alone.", added=True
    )
    compress_reasoning: ReasoningConfig | None = key(
        None, "Compress the analysis of the last reply in a share of the rows; null: rows as they are.", added=True
    )
    max_document_bytes: int | None = key(None, "Longer documents are cut at the last line before; counted.", gt=0)
    max_row_bytes: int = key(
        100_000_000,
        "Rows with more text than this are left out (too_long): preparing a row takes up to 80 times its bytes.",
        gt=0,
        added=True,
    )
    max_bytes: int | None = key(None, "Read a sample of whole files of at most this many bytes; null: all.", gt=0)
    filters: dict[str, JsonObject] = key(
        {}, "Filters of datatrove, in order: name and arguments, such as gopher_quality: {min_doc_words: 20}."
    )
    dedup: Literal["exact", "near"] | None = key(
        None, "Keep one of equal (exact) or similar (near: MinHash) documents, by datatrove."
    )

    @model_validator(mode="after")
    def _check(self):
        if (self.format in _WITHOUT_FILES) != (not self.paths):
            raise ValueError(f"format={self.format} with paths={list(self.paths)}: name the files to read")
        if (self.filters or self.dedup) and self.records != "documents":
            raise ValueError(f"filters and dedup work on documents, not on records={self.records}; remove them")
        chat_keys = {"compress_reasoning": self.compress_reasoning, "train_on": self.train_on != "replies"}
        for name, given in chat_keys.items():
            if given and self.records != "chat":
                raise ValueError(f"{name} is about the replies of chats, not about records={self.records}; remove it")
        if self.where and self.by_file:
            raise ValueError(f"where={self.where} asks for columns, which format={self.format} has not; remove it")
        if empty := [column for column, values in self.where.items() if not values]:
            raise ValueError(f"where.{empty[0]} has no value, so no row would be read; name one, or remove it")
        return self

    @property
    def endings(self) -> tuple[str, ...]:
        """File endings read from folders."""
        return _SUFFIXES[self.format] if self.suffixes is None else self.suffixes

    @property
    def by_file(self) -> bool:
        """Whether one file is one document, so that its name decides its split."""
        return self.format in ("text", "python_stdlib", "synthetic")


class CorpusConfig(Tree, role="result"):
    """Raw text to prepare, split by a hash of each document's name or text."""

    collections: dict[str, CollectionConfig] = key(
        {}, "Named collections; empty: documents and chat, made from the source that kind names."
    )
    kind: Literal["python_stdlib", "folder"] = key(
        "python_stdlib",
        "Without collections. python_stdlib: sources and manuals shipped with Python; folder: text files under path.",
    )
    path: str | None = key(None, "Folder of text files (kind: folder).", role="place")
    suffixes: tuple[str, ...] = key((".py", ".txt", ".md", ".rst"), "File endings read from a folder (kind: folder).")
    max_file_bytes: int = key(200_000, "Longer files are cut here (without collections); counted.", gt=0)
    max_bytes: int | None = key(None, "Read a sample of this many bytes (without collections); null: everything.")
    validation_share: float = key(0.05, "Share of documents to tune on.", ge=0, lt=1)
    held_out_share: float = key(0.05, "Share of documents that only the final evaluation reads.", ge=0, lt=1)
    decontaminate: str | None = key(
        None,
        "Leave out documents and chats that share 12 words in a row with a sample of this file of benchmarks"
        " (samples.jsonl of lclm suite SUITE.yaml --samples), by datatrove; null: none.",
        role="place",
        added=True,
    )

    @model_validator(mode="after")
    def _check(self):
        if self.kind == "folder" and not self.path:
            raise ValueError("corpus.kind=folder needs a folder; set corpus.path")
        if self.kind == "folder" and self.collections:
            raise ValueError(
                "corpus.kind=folder and corpus.collections say two things; name the folder in a collection"
            )
        return self

    @property
    def resolved(self) -> dict[str, CollectionConfig]:
        """The collections; ``kind`` stands for ``documents`` and ``chat`` over the same files."""
        if self.collections:
            return self.collections
        folder = self.kind == "folder"
        shared = {
            "format": "text" if folder else "python_stdlib",
            "paths": (self.path,) if folder else (),
            "suffixes": self.suffixes if folder else None,
            "max_document_bytes": self.max_file_bytes,
            "max_bytes": self.max_bytes,
        }
        return {
            "documents": CollectionConfig(**shared),
            "chat": CollectionConfig(**shared, records="function_chat"),
        }

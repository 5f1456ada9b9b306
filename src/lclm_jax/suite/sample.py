"""A benchmark sample: one question about one context, and how it is written out for each kind of system."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lclm_jax.errors import LclmError
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, MEMORY_TOKENS
from lclm_jax.types import JsonObject, ReadOnlyJson

Context = Literal["raw", "memory", "none", "truncated"]
"""How a system is given the context: as text, between memory tags, not at all, or cut to a budget."""


class Parts(NamedTuple):
    """A prompt in the parts that KV-cache methods treat differently."""

    context: str
    """Compressed: the instruction and the context."""
    question: str
    """Read in full, after the compression."""
    prefix: str
    """The first words of the reply."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one context.

    Raises:
        LclmError: there is no question, or nothing that an answer is compared with.
    """

    id: str
    """Unique within a suite: ``TASK/NUMBER``."""
    task: str
    """Name of the task, with its length if it has one."""
    context: str
    """What is compressed."""
    question: str
    """What follows the context, line breaks included."""
    answers: tuple[str, ...]
    """Accepted or required answers; the scorer of the task says which."""
    instruction: str = ""
    """What stands before the context and is never compressed."""
    prefix: str = ""
    """How the reply begins; the system goes on from there."""
    gold: str = ""
    """A right answer as it would follow the prompt; its likelihood is measured."""
    max_new_tokens: int = 64
    chat: bool = True
    """Whether the prompt is a message of a chat; False: plain text to go on from, chat model or not."""
    length: int | None = None
    """Nominal length in tokens, of tasks that have one."""
    depth: float | None = None
    """Where in the context the answer stands, from 0 to 1."""
    document: str = ""
    """Samples about the same document are not independent; empty: the sample's own id."""
    extra: ReadOnlyJson = field(default_factory=dict)
    """What the scorer of the task needs beside the answers."""

    def __post_init__(self):
        if not self.question and not self.prefix:
            raise LclmError(f"sample {self.id} has no question; give it one")
        if not self.answers and not self.gold:
            raise LclmError(f"sample {self.id} has no answer to compare with; give it one")

    @property
    def cluster(self) -> str:
        """What the sample is about: samples of one cluster are resampled together."""
        return self.document or self.id

    def prompt(self, context: Context) -> str:
        """The user's message, without the prefix of the reply; ``truncated`` is cut by the system, so it is raw here.

        Raises:
            LclmError: the text holds a memory token of its own, so that tags around it would be ambiguous.
        """
        if context == "none":
            return self.instruction + self.question
        if context != "memory" or not self.context:
            return self.instruction + self.context + self.question
        for token in MEMORY_TOKENS:
            if token in self.instruction + self.context + self.question:
                raise LclmError(f"sample {self.id} holds the text {token}; remove it from the file of the task")
        return f"{self.instruction}{MEMORY_START}{self.context}{MEMORY_END}{self.question}"

    def parts(self) -> Parts:
        """Context and question apart, as KV-cache methods need them."""
        return Parts(self.instruction + self.context, self.question, self.prefix)

    def digest(self, context: Context) -> str:
        """SHA-256 of the prompt and its prefix, 16 hexadecimal digits: equal digests mean equal questions."""
        text = "\0".join((self.prompt(context), self.prefix))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_json(self) -> JsonObject:
        """The sample as a JSON object; ``from_json`` reads it."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "answers": list(self.answers),
            "extra": dict(self.extra),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Sample":
        """Read what ``as_json`` wrote."""
        answers = values["answers"]
        assert isinstance(answers, Sequence), "written by as_json"
        return cls(**{**values, "answers": tuple(answers)})  # type: ignore[arg-type]

"""Whether two tokenizers give equal ids for plain text, so that it needs to be tokenized once.

Ids of plain text are made by the normalizer, the pre-tokenizer, the model (vocabulary, merges, byte fallback) and those
added tokens that are not special; special tokens, templates and post-processing have no part in them. The two
tokenizers of the published recipe differ in added tokens alone.
"""

from functools import lru_cache
from typing import NamedTuple

from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import Json, JsonObject


class SharedTokenization(NamedTuple):
    """Two tokenizers that give equal ids for any text without one of ``differing``."""

    differing: tuple[str, ...]
    """Added tokens, not special, that only one of them has, or to which they give different ids."""

    def covers(self, text: str) -> bool:
        """Whether both give equal ids for ``text``."""
        return not any(token in text for token in self.differing)


@lru_cache(1)
def shared_tokenization(decoder: Tokenizer, encoder: Tokenizer) -> SharedTokenization | None:
    """How the two tokenizers agree on plain text; None if they may differ on any text."""
    if decoder.digest == encoder.digest:
        return SharedTokenization(())
    first, second = decoder.settings, encoder.settings
    if _plain_model(first) != _plain_model(second):
        return None
    one, other = _plain_added(first), _plain_added(second)
    differing = {content for content in {*one, *other} if one.get(content) != other.get(content)}
    kept_as_is = (first.get("normalizer") or {}).get("type") in (None, "NFC")  # texts come in form C
    for token in (found[content] for found in (one, other) for content in differing & found.keys()):
        beside = token["lstrip"] or token["rstrip"] or token["single_word"]
        if beside or (token["normalized"] and not kept_as_is):
            return None  # the characters of a text do not tell where it is recognised, or what it takes along
    return SharedTokenization(tuple(sorted(differing)))


def _plain_model(settings: JsonObject) -> list[Json]:
    """What makes the ids of plain text, but for added tokens; merges in one of the two forms that files have."""
    model = dict(settings["model"])
    if "merges" in model:
        model["merges"] = [pair.split(" ", 1) if isinstance(pair, str) else list(pair) for pair in model["merges"]]
    return [settings.get("normalizer"), settings.get("pre_tokenizer"), model]


def _plain_added(settings: JsonObject) -> dict[str, JsonObject]:
    """The added tokens that are recognised in plain text, by their text."""
    return {token["content"]: token for token in settings.get("added_tokens", ()) if not token["special"]}

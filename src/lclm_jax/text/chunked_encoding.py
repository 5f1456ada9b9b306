"""Texts to ids with offsets and pre-tokens. Long texts are tokenized in chunks: the same ids in two thirds of the time.

A chunk ends after a letter or digit and before a single space. That this is an end of a pre-token is asked of the
tokenizer, by giving it the pre-token before the place together with what follows; where it is not, the text is
tokenized as a whole. Like cuts, this rests on patterns that never look behind and see one character ahead.

ASCII text of a byte-level tokenizer is not given to the library as a whole: the same pattern finds its pre-tokens, and
the ids of those that were seen before are known (``KnownPreTokens``). That takes a fraction of the time.
"""

import copy
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

import numpy as np

import tokenizers
from lclm_jax.errors import LclmError
from lclm_jax.text.blank_boundaries import blank_boundaries
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject
from tokenizers import normalizers

LONGEST = 2**20
"""Characters that are tokenized at once, at most, in a long text."""

_CHUNK = 4096
_STRETCH = 2**20
_AT_ONCE = 64
"""Chunks whose tokens the library holds at a time; it takes some hundred bytes for each."""
_FOLLOWING = 16

_END = re.compile(r"[^\W_](?= \S)")
_BLANK_END = re.compile(r"[^\W_](?= [^\W_])")
_OTHER_END = re.compile(r"[^\W_](?=[^\w\s])")


_MOST_KNOWN, _LONGEST_KNOWN, _PIECES_AT_ONCE = 400_000, 200, 4096
"""Pre-tokens whose ids are kept, the characters of such, and how many are asked for at once."""

_BLANKS = r" \t\n\v\f\r"
_CLASSES = {r"\s": _BLANKS, r"\p{L}": "a-zA-Z", r"\p{N}": "0-9", r"\p{Lu}": "A-Z", r"\p{Ll}": "a-z"}
_CLASSES |= dict.fromkeys((r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}"), "")
"""What a pattern calls classes of characters -> those of ASCII; of the last four there are none."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of a ByteLevel pre-tokenizer."""
_CORNERS = "  \n\n\r\t''sStTdDmMlrveE12aB_.,(/<"
_PROBE = "I'm HE'LL they'd 12345 x_1 = {'a': [1.5]}  # why?\n\n\tdef f(x):\r\n    return  x\n \n  \t\n(a) </s> ...\n"

_Item = TypeVar("_Item")


class Encoded(NamedTuple):
    """One tokenized text."""

    ids: np.ndarray
    """int32 [tokens]."""
    starts: np.ndarray
    """int32 [tokens]: character at which a token begins; tokens that share a character all cover it."""
    ends: np.ndarray
    """int32 [tokens]: character after it."""
    opens: np.ndarray
    """bool [tokens]: whether a pre-token begins with it."""


class UnbrokenTextError(LclmError):
    """A text with a long part in which no end of a pre-token was found: it would have to be tokenized at once."""


class ChunkedEncoder:
    """Tokenizes many texts at once, on all cores.

    Args:
        tokenizer: The tokenizer.
        chunk: Characters of a chunk, about.
        plain: Whether special-token strings in texts are plain characters.
    """

    def __init__(self, tokenizer: Tokenizer, chunk: int = _CHUNK, plain: bool = True):
        self._backend, self._offsets, self._chunk = tokenizer.backend(plain), TokenOffsets(tokenizer), chunk
        self._plain = plain
        self._known = known_pre_tokens(tokenizer) if plain else None
        self._of_normal = _without_form_c(self._backend)
        self.blanks = blank_boundaries(tokenizer)
        """The boundaries of a tokenizer without pre-tokens."""

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenize ``texts``; no special tokens are added."""
        known = [self._from_known(text) for text in texts]
        rest = iter(self._in_chunks([text for text, one in zip(texts, known, strict=True) if one is None]))
        return [next(rest) if one is None else one for one in known]

    def _from_known(self, text: str) -> Encoded | None:
        return None if self._known is None else self._known(text)

    def _in_chunks(self, texts: Sequence[str]) -> list[Encoded]:
        end = _END if self.blanks is None else _BLANK_END
        bounds = [[0, *self._ends(text, end), len(text)] for text in texts]
        found = self._encode_parts(texts, bounds)
        right = [all(one) for one in self._end_pre_tokens(texts, bounds, found)]
        wrong = [i for i in range(len(texts)) if not right[i]]
        for i, whole in zip(wrong, self._encode([texts[i] for i in wrong]), strict=True):
            found[i], bounds[i] = [whole], [0, len(texts[i])]
        return [_joined(own, starts) for own, starts in zip(found, bounds, strict=True)]

    def stretches(self, text: str) -> Iterator[tuple[int, int, Encoded]]:
        """A long text in consecutive stretches of about a million characters: (start, end, its tokens).

        Together they are what the whole text gives, at a bounded need of memory. Each ends before a blank or a mark
        that follows a letter or digit.

        Raises:
            UnbrokenTextError: ``LONGEST`` characters without such a place.
        """
        start, count = 0, max(1, _STRETCH // self._chunk)
        patterns = [_END if self.blanks is None else _BLANK_END]
        if self._plain and self.blanks is None:  # else a mark may be inside the string of a special token
            patterns.append(_OTHER_END)
        ends = self._ends(text, *patterns)
        while start < len(text):
            bounds = [start, *itertools.islice(ends, count)]
            if len(bounds) <= count:
                bounds.append(len(text))
            bounds, found = self._verified(text, bounds)
            if found:
                yield start, bounds[-1], _joined(found, [one - start for one in bounds])
                start = bounds[-1]

    def _verified(self, text: str, bounds: list[int]) -> tuple[list[int], list[Encoded]]:
        """Those of ``bounds`` where a pre-token ends, and the chunks between them."""
        while len(bounds) > 1:
            longest = max(stop - start for start, stop in itertools.pairwise(bounds))
            if longest > LONGEST:
                raise UnbrokenTextError(
                    f"{longest:,} characters without a place where the tokenizer begins afresh, at most {LONGEST:,};"
                    " break the text with blanks or lines"
                )
            (found,) = self._encode_parts([text], [bounds])
            (right,) = self._end_pre_tokens([text], [bounds], [found])
            if all(right):
                return bounds, found
            bounds = [bounds[0], *itertools.compress(bounds[1:], right)]
        return bounds, []

    def _ends(self, text: str, *patterns: re.Pattern[str]) -> Iterator[int]:
        """Where chunks may end, by the first of ``patterns`` that is found within the length of a chunk."""
        if self.blanks is None and self._backend.pre_tokenizer is None:
            return
        at = self._chunk
        while at < len(text):
            reach = len(text) if len(patterns) == 1 else at + self._chunk
            places = (pattern.search(text, at - 1, reach) for pattern in patterns)
            match = next((place for place in places if place is not None), None)
            if match is not None:
                yield match.end()
                at = match.end() + self._chunk
            elif reach >= len(text):
                return
            else:
                at = reach

    def _encode_parts(self, texts: Sequence[str], bounds: Sequence[Sequence[int]]) -> list[list[Encoded]]:
        """The chunks of each text; the blank before a chunk is left out where the tokenizer puts it there itself."""
        skip = int(self.blanks is not None and self.blanks.adds_blank)
        pairs = [(i, *pair) for i, own in enumerate(bounds) for pair in itertools.pairwise(own)]
        parts: list[list[Encoded]] = [[] for _ in texts]
        for some in batched(pairs, _AT_ONCE):
            pieces = [texts[i][start + (skip and start > 0) : stop] for i, start, stop in some]
            for (i, start, _), one in zip(some, self._encode(pieces), strict=True):
                parts[i].append(_after_blank(one) if skip and start > 0 else one)
        return parts

    def _end_pre_tokens(
        self, texts: Sequence[str], bounds: Sequence[Sequence[int]], found: Sequence[Sequence[Encoded]]
    ) -> list[list[bool]]:
        """Of each text, which of its chunks end where a pre-token does (or with the text)."""
        right = [[True] * (len(own) - 1) for own in bounds]
        if self.blanks is not None:
            return right  # they end before a blank
        pieces, places, owners = [], [], []
        for i, (text, own, parts) in enumerate(zip(texts, bounds, found, strict=True)):
            for k, (start, end, part) in enumerate(zip(own[:-1], own[1:], parts, strict=True)):
                if end == len(text):
                    continue
                last = start + int(part.starts[np.flatnonzero(part.opens)[-1]])
                pieces.append(text[last : end + _FOLLOWING])
                places.append(end - last)
                owners.append((i, k))
        for (i, k), place, one in zip(owners, places, self._encode(pieces), strict=True):
            right[i][k] = bool(np.any(one.opens & (one.starts == place)))
        return right

    def _encode(self, texts: list[str]) -> list[Encoded]:
        known = [self._from_known(text) for text in texts]
        rest = iter(self._by_library([text for text, one in zip(texts, known, strict=True) if one is None]))
        return [next(rest) if one is None else one for one in known]

    def _by_library(self, texts: list[str]) -> list[Encoded]:
        normal = all(unicodedata.is_normalized("NFC", text) for text in texts)  # quickly seen
        backend = self._of_normal if normal else self._backend
        found = backend.encode_batch(texts, add_special_tokens=False) if texts else []
        return [self._columns(text, one) for text, one in zip(texts, found, strict=True)]

    def _columns(self, text: str, encoding: tokenizers.Encoding) -> Encoded:
        ids = np.array(encoding.ids, np.int32)
        words = np.array(encoding.word_ids, np.float64)  # None becomes nan, which differs from everything
        opens = _changes(words)
        starts, ends = self._offsets(text, ids, encoding)
        if self.blanks is not None:
            at_blanks = self.blanks.opens(text, ids, starts)
            # Beside the blanks an added token, such as a line break, parts a text.
            opens = opens | at_blanks if self.blanks.adds_none else at_blanks
        return Encoded(ids, starts, ends, opens)


class KnownPreTokens:
    """Tokenizes ASCII text by the ids of its pre-tokens; those that are new are tokenized by the library, once.

    A pre-token's ids do not depend on what is around it. Only ASCII: there, what a letter or a blank is does not depend
    on the version of Unicode that the library or Python was built with.

    Args:
        backend: The tokenizer, to which special-token strings are plain characters.
        pattern: What its pre-tokens match.
        lengths: Bytes of each id, int64 [vocabulary].
    """

    def __init__(self, backend: tokenizers.Tokenizer, pattern: re.Pattern[str], lengths: np.ndarray):
        self.parts = backend, pattern, lengths
        self._backend, self._pattern, self._lengths = self.parts
        self._added = tuple(one.content for one in backend.get_added_tokens_decoder().values() if not one.special)
        self._ids: dict[str, bytes | None] = {}

    def __call__(self, text: str) -> Encoded | None:
        """The tokens of ``text``; None if it has to be given to the library."""
        if not text.isascii() or any(added in text for added in self._added):
            return None
        pieces = self._pattern.findall(text)
        found = list(map(self._ids.get, pieces))
        if None in found:
            self._learn({piece for piece, one in zip(pieces, found, strict=True) if one is None})
            found = list(map(self._ids.get, pieces))
        if None in found:
            return None
        joined = cast("list[bytes]", found)
        ids = np.frombuffer(b"".join(joined), np.int32)
        ends = np.cumsum(self._lengths[ids]).astype(np.int32)
        if (ends[-1] if ends.size else 0) != len(text):
            return None
        opens, sizes = np.zeros(ids.size, bool), np.fromiter(map(len, joined), np.int64, len(joined)) // ids.itemsize
        opens[np.cumsum(sizes) - sizes] = True
        return Encoded(ids, np.append(np.int32(0), ends[:-1])[: ids.size].astype(np.int32), ends, opens)

    def _learn(self, pieces: set[str]) -> None:
        """Ask the library for the ids of ``pieces``; one that it would cut again stays unknown."""
        if len(self._ids) + len(pieces) > _MOST_KNOWN:
            self._ids.clear()
        new = list(pieces)
        for some in batched(new, _PIECES_AT_ONCE):
            encodings = self._backend.encode_batch(list(some), add_special_tokens=False)
            for piece, one in zip(some, encodings, strict=True):
                if len(piece) <= _LONGEST_KNOWN and len(set(one.word_ids)) == 1:
                    self._ids[piece] = np.array(one.ids, np.int32).tobytes()


@lru_cache(maxsize=4)
def known_pre_tokens(tokenizer: Tokenizer) -> KnownPreTokens | None:
    """What tokenizes ASCII text by pre-tokens; None for a tokenizer of another kind, or one that it cannot imitate."""
    lengths, pattern = _byte_lengths(tokenizer), _ascii_pattern(tokenizer.small_settings.get("pre_tokenizer"))
    model = tokenizer.small_settings["model"]
    if lengths is None or pattern is None or model.get("type") != "BPE" or model.get("dropout"):
        return None
    backend = tokenizer.backend(plain=True)
    made = KnownPreTokens(backend, pattern, lengths)
    draws = np.random.default_rng(0)
    # Beside text: every pair of characters, in all kinds of surroundings.
    probes = ["".join(map(chr, draws.integers(0, 128, 4096))), "".join(draws.choice(list(_CORNERS), 4096)), _PROBE]
    for text, whole in zip(probes, backend.encode_batch(probes, add_special_tokens=False), strict=True):
        found = made(text)
        words = np.array(whole.word_ids, np.float64)
        if found is None or found.ids.tolist() != whole.ids or not np.array_equal(_changes(words), found.opens):
            return None
    return made


def _ascii_pattern(pre_tokenizer: JsonObject | None) -> re.Pattern[str] | None:
    """The pattern of byte-level pre-tokens, for ASCII text; None if there is none, or it says more than is known."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    source = ""
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            source = _GPT2
        case ["Split", "ByteLevel"] if not (steps[1].get("use_regex", True) or steps[0].get("invert")):
            source = steps[0]["pattern"].get("Regex", "") if steps[0].get("behavior") == "Isolated" else ""
    if not source or steps[-1].get("add_prefix_space", True) or "&&" in source:
        return None
    parts, inside = [], False
    for part in re.findall(r"\\[pP]\{\w+\}|\\.|.", source, re.DOTALL):
        if part in _CLASSES:
            part = _CLASSES[part] if inside else f"[{_CLASSES[part]}]" if _CLASSES[part] else "(?!)"
        elif part == r"\S" and not inside:
            part = f"[^{_BLANKS}]"
        elif (part[0] == "\\" and part[1].isalpha() and part[1] not in "rnt") or part in ("[" if inside else "^$"):
            return None  # another class, a nested one, or an anchor, whose meaning differs
        inside = part == "[" or (inside and part != "]")
        parts.append(part)
    try:
        compiled = re.compile("".join(parts))
    except re.error:
        return None
    return None if compiled.groups else compiled


def long_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of a prompt or chat, special-token strings included, int32; a long one is taken in stretches.

    Raises ``UnbrokenTextError`` as ``ChunkedEncoder.stretches`` does.
    """
    if len(text) <= LONGEST:
        return tokenizer.encode(text)
    return np.concatenate([part.ids for _, _, part in ChunkedEncoder(tokenizer, plain=False).stretches(text)])


def batched(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """``items`` in runs of ``size``, the last one shorter."""
    return (items[i : i + size] for i in range(0, len(items), size))


def _without_form_c(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """For texts that are in Unicode's form C already: what would only bring them there is left out."""
    if not isinstance(backend.normalizer, normalizers.NFC):
        return backend
    changed = copy.deepcopy(backend)
    changed.normalizer, changed.encode_special_tokens = None, backend.encode_special_tokens
    return changed


def _joined(parts: Sequence[Encoded], starts: Sequence[int]) -> Encoded:
    """The chunks of one text, which begin at the characters ``starts``."""
    if len(parts) == 1:
        return parts[0]
    shift = np.repeat(np.array(starts[: len(parts)], np.int32), [len(part.ids) for part in parts])
    ids, first, last, opens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Encoded(ids, first + shift, last + shift, opens)


def _after_blank(part: Encoded) -> Encoded:
    """A chunk without the blank before it as one with it."""
    starts, ends = part.starts + 1, part.ends + 1
    starts[:1] = 0
    return part._replace(starts=starts, ends=np.maximum(ends, 1))


def _changes(words: np.ndarray) -> np.ndarray:
    """Where another word begins, bool [tokens]."""
    return np.append(True, words[1:] != words[:-1])[: len(words)]


class TokenOffsets:
    """Offsets of tokens; of a byte-level tokenizer from the lengths of its tokens, which takes a tenth of the time."""

    def __init__(self, tokenizer: Tokenizer):
        self._lengths = _byte_lengths(tokenizer)

    def __call__(self, text: str, ids: np.ndarray, encoding: tokenizers.Encoding) -> tuple[np.ndarray, np.ndarray]:
        """First character of each token, and the one after its last; int32. Tokens may share a character."""
        if self._lengths is not None and text:
            stops = np.cumsum(self._lengths[ids])
            data = np.frombuffer(text.encode(), np.uint8)
            if stops.size and stops[-1] == data.size:  # else the tokenizer has changed the text
                begun = np.cumsum((data & 0xC0) != 0x80, dtype=np.int32)  # characters up to each byte, its own included
                return begun[np.append(0, stops[:-1])] - 1, begun[stops - 1]
        flat = itertools.chain.from_iterable(encoding.offsets)  # an array of pairs takes twice as long
        starts, ends = np.fromiter(flat, np.int32, 2 * len(ids)).reshape(-1, 2).T
        return starts, ends


@lru_cache(maxsize=4)
def _byte_lengths(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of text of each id, int64 [vocabulary]; None if it is not byte-level, or changes more than Unicode's form.

    (Texts come in form C already.)
    """
    settings = tokenizer.small_settings
    if (settings.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    if (settings.get("normalizer") or {}).get("type") not in (None, "NFC"):
        return None
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    backend = tokenizer.backend(plain=True)
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        lengths[index] = len(token)  # whose characters stand for bytes
    for index, added in backend.get_added_tokens_decoder().items():
        lengths[index] = len(added.content.encode())
    return lengths

"""Prompts to ids: raw text by the decoder's tokenizer, spans by the encoder's, as they were in training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tokenizers
from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError
from lclm_serving.memory_tags import split_memory
from lclm_serving.windows import latent_count

_STRETCH = 1 << 16
"""Characters that are counted at once."""
_MORE_BY_A_CUT = 64


class PromptReader:
    """Both tokenizers of a model.

    No tokenizer adds tokens by itself: a text has the ids of its characters and of the special tokens written in it. A
    prompt that is no chat begins with what the decoder's post-processor puts before a text (``bos_id``).

    Args:
        decoder: content of the decoder's ``tokenizer.json``.
        encoder: the same of the encoder.
        config: of the model.

    Raises:
        LclmError: the decoder's post-processor puts several tokens before a text.
    """

    def __init__(self, decoder: str, encoder: str, config: LclmConfig):
        self.config = config
        self._decoder, self._encoder = _tokenizer(decoder), _tokenizer(encoder)
        before = _put_before(self._decoder)
        if len(before) > 1:
            raise LclmError(f"the tokenizer puts {len(before)} tokens before a text, one at most is supported")
        self.bos_id = before[0] if before else None

    @classmethod
    def from_folder(cls, folder: Path, config: LclmConfig) -> "PromptReader":
        """The tokenizers of a model's folder; raises ``LclmError`` if one is missing."""
        found = [folder / "tokenizer.json", folder / "encoder" / "tokenizer.json"]
        if not found[0].is_file():
            found[0] = folder / "decoder" / "tokenizer.json"
        for path in found:
            if not path.is_file():
                raise LclmError(f"there is no {path}; name the folder of an LCLM")
        decoder, encoder = (path.read_text(encoding="utf-8") for path in found)
        return cls(decoder, encoder, config)

    def pieces(self, text: str, bos: bool, limits: tuple[int, int] | None = None) -> Iterator[list[int] | np.ndarray]:
        """Decoder ids (a list) and encoder ids of spans (an array), in the order of the text.

        Args:
            text: the prompt, tags included.
            bos: whether to begin with ``bos_id`` unless the text does: for plain prompts, not for rendered chats.
            limits: most tokens of a raw piece and of a span that are of any use; longer ones are refused before memory
                holds all their tokens. None: no limit.

        Raises:
            LclmError: for tags that do not pair up, and for spans that are empty or too long.
        """
        if bos and self.bos_id is not None:
            first = next(iter(split_memory(text)), None)
            begun = first is not None and not first.span and self._ids(first.text)[:1] == [self.bos_id]
            if not begun:
                yield [self.bos_id]
        for piece in split_memory(text):
            if limits is not None:
                _check_length(self._encoder if piece.span else self._decoder, piece.text, limits[piece.span])
            if not piece.span:
                yield self._ids(piece.text)
                continue
            ids = self._encoder.encode(piece.text, add_special_tokens=False).ids
            if not ids:
                raise LclmError("a memory span has no token; put text in it or delete its tags")
            yield np.array(ids, np.int64)

    def _ids(self, text: str) -> list[int]:
        return list(self._decoder.encode(text, add_special_tokens=False).ids)

    def read(self, text: str, bos: bool, ratio: int | None = None) -> tuple[list[int], list[np.ndarray]]:
        """Decoder ids of a prompt with placeholders for its latents, and the encoder ids of its spans.

        Args:
            text: the prompt, tags included.
            bos: see ``pieces``.
            ratio: tokens of one latent; None: the model's.
        """
        config = self.config
        ids: list[int] = []
        spans: list[np.ndarray] = []
        for piece in self.pieces(text, bos):
            if isinstance(piece, list):
                ids += piece
                continue
            count = latent_count(len(piece), ratio or config.compression_ratio)
            ids += [config.memory_start_id, *[config.memory_id] * count, config.memory_end_id]
            spans.append(piece)
        return ids, spans


def _tokenizer(content: str) -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer.from_str(content)
    built.no_truncation()
    built.no_padding()
    return built


def _check_length(tokenizer: tokenizers.Tokenizer, text: str, limit: int) -> None:
    """Raise ``LclmError`` if ``text`` has more than ``limit`` tokens by far.

    A tokenizer holds some hundred bytes for each token of a text, so a long text is counted in stretches first. A cut
    may make some tokens more, which are not counted.
    """
    if len(text) <= 2 * limit + _STRETCH:
        return
    count = 0
    for start in range(0, len(text), _STRETCH):
        found = tokenizer.encode(text[start : start + _STRETCH], add_special_tokens=False)
        count += max(len(found) - _MORE_BY_A_CUT, 0)
        if count > limit:
            raise LclmError(
                f"a text of {len(text):,} characters has more than the {limit:,} tokens for which the model has"
                " positions; shorten it, or compress more of it"
            )


def _put_before(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Ids that the post-processor puts before a text."""
    if tokenizer.post_processor is None:
        return []
    encoding = tokenizer.encode("a")
    marks = encoding.special_tokens_mask
    return list(encoding.ids[: marks.index(0) if 0 in marks else len(marks)])

"""The bytes of text that each id of a byte-level tokenizer stands for: its tokens end to end are the text."""

from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.text.tokenizer import Tokenizer

VOCABULARY = "vocabulary.safetensors"
"""The bytes of every token of the decoder's tokenizer: columns ``offsets`` int64 and ``data`` uint8."""


_STRETCH = 2**16
"""Tokens whose text is put together at once."""


class TokenBytes(NamedTuple):
    """Token ``i`` is ``data[offsets[i] : offsets[i + 1]]``."""

    offsets: np.ndarray
    """int64 [vocabulary + 1]."""
    data: np.ndarray
    """uint8 [bytes]."""

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each token, int64 [vocabulary]."""
        return np.diff(self.offsets)

    def text(self, ids: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of the text of ``ids`` (integers [tokens]), uint8.

        Put together in stretches, which bounds the memory that a long text takes.
        """
        stretches = [self._stretch(ids[start : start + _STRETCH]) for start in range(0, len(ids), _STRETCH)]
        return np.concatenate([np.zeros(0, np.uint8), *stretches])

    def _stretch(self, ids: np.ndarray) -> np.ndarray:
        sizes = self.lengths[ids]
        ends = np.cumsum(sizes)
        places = np.arange(int(ends[-1]) if ends.size else 0)
        return self.data[places + np.repeat(self.offsets[ids] - ends + sizes, sizes)]


def token_bytes(tokenizer: Tokenizer) -> TokenBytes | None:
    """The bytes of every id; None if the tokenizer is not byte-level, or changes more of a text than Unicode's form."""
    settings = tokenizer.small_settings
    if (settings.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    if (settings.get("normalizer") or {}).get("type") not in (None, "NFC"):
        return None
    pieces = [b""] * tokenizer.vocab_size
    backend, bytes_of = tokenizer.backend(plain=True), _byte_alphabet()
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        if not set(token) <= bytes_of.keys():
            return None
        pieces[index] = bytes(map(bytes_of.__getitem__, token))
    for index, added in backend.get_added_tokens_decoder().items():
        pieces[index] = added.content.encode()
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    return TokenBytes(np.append(0, np.cumsum(sizes)), np.frombuffer(b"".join(pieces), np.uint8))


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level tokenizers write each byte: itself if it is printable, else one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def write_vocabulary(storage: Storage, vocabulary: TokenBytes) -> None:
    """Store the bytes of the tokens in a prepared folder, unless they are there; raises ``OSError``."""
    content = save(vocabulary._asdict())
    if storage.size(VOCABULARY) != len(content) or storage.read(VOCABULARY) != content:
        storage.write(VOCABULARY, content)


def read_vocabulary(storage: Storage) -> TokenBytes | None:
    """What ``write_vocabulary`` stored; None if there is none. Raises ``PreparedError`` if it cannot be read."""
    if not storage.exists(VOCABULARY):
        return None
    try:
        return TokenBytes(**load(storage.read(VOCABULARY)))
    except (OSError, SafetensorError, TypeError) as error:
        raise PreparedError(f"cannot read {storage.shown(VOCABULARY)}: {error}; prepare the data again") from None

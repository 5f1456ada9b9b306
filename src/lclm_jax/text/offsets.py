"""Which characters of a text each of its tokens covers."""

import itertools
import json

import numpy as np
import tokenizers

from lclm_jax.text.tokenizer import Tokenizer


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


def _byte_lengths(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of text of each id, int64 [vocabulary]; None if it is not byte-level, or changes more than Unicode's form.

    (Texts come in form C already.)
    """
    settings = json.loads(tokenizer.json)
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

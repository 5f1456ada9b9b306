"""Exports with random weights, for measurements in which the values of weights do not matter, and texts of a length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lclm_jax.config import CorpusConfig, ModelConfig
from lclm_jax.data.prepare.corpus import read_corpus
from lclm_jax.errors import LclmError
from lclm_jax.interop.export import new_export, write_model
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

_DEMO: dict[str, Any] = dict(vocab_size=512, hidden_size=128, num_heads=2, num_kv_heads=1, head_dim=64, mlp_size=384)
_DEMO |= dict(rope_theta=1e4, max_positions=16_384)
_SMOLLM2 = {"preset": "smollm2_135m", "max_positions": 16_384}
SHAPES: dict[str, dict[str, Any]] = {
    "demo": dict(encoder=_DEMO | {"num_layers": 2}, decoder=_DEMO | {"num_layers": 4}, window=16),
    "smollm2": dict(encoder=_SMOLLM2, decoder=_SMOLLM2, window=1024),
}
"""Name -> towers and window; positions for 8K tokens and their latents."""
_VOCABULARY = 8192
_TEXT_BYTES = 4_000_000


def untrained_export(shape: str, ratio: int, folder: Path) -> Path:
    """Write an LCLM of a shape in ``SHAPES`` with random float32 weights to ``folder``, unless it is there.

    Its tokenizer is trained on the text that Python carries. Returns ``folder``.
    """
    if (folder / "config.json").is_file():
        return folder
    values = SHAPES[shape]
    tokenizer = folder.parent / f"tokenizer-{shape}"
    if not (tokenizer / "tokenizer.json").is_file():
        size = min(_VOCABULARY, values["decoder"].get("vocab_size", _VOCABULARY))
        train_tokenizer(_texts(), size, tokenizer)
    ids = tuple(Tokenizer(tokenizer).memory_ids)
    window = -(-values["window"] // ratio) * ratio
    model = ModelConfig(**{**values, "window": window}, ratio=ratio, memory_token_ids=ids)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.02, size=leaf.shape).astype(np.float32), abstract_params(model)
    )
    with new_export(folder) as part:
        write_model(params, model, part, decoder_tokenizer=tokenizer, encoder_tokenizer=tokenizer)
    return folder


class Documents:
    """Texts of given lengths, no two with a common beginning.

    Args:
        tokenizer: in whose tokens lengths are counted.
        longest: longest text that is asked for.
    """

    def __init__(self, tokenizer: Tokenizer, longest: int):
        self._text = "\n".join(_texts())
        _, starts, _ = tokenizer.encode_with_offsets(self._text)
        self._starts, self._at = np.asarray(starts), 0
        if len(self._starts) < 4 * longest:
            raise LclmError(
                f"the text that Python carries has {len(self._starts):,} tokens, too few; shorten the lengths"
            )

    def next(self, tokens: int) -> str:
        """A text of about ``tokens`` tokens that no earlier one has: another part of the corpus, begun by a number."""
        self._at += 1
        # A step that has no small factor in common with lengths: texts overlap, if at all, at other places of windows.
        first = (self._at * 9973) % (len(self._starts) - tokens)
        return f"{self._at}: " + self._text[self._starts[first] : self._starts[first + tokens - 3]]


def _texts() -> Iterator[str]:
    corpus = CorpusConfig(kind="python_stdlib", max_bytes=_TEXT_BYTES)
    for document in read_corpus(corpus, ("train",)):
        yield document.text

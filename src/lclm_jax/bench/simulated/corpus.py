"""A corpus of any size that is not there: lengths, cuts and token ids are made when they are asked for.

It stands in for the prepared shards of a source, so that everything else (planning, packing, index, loader) is the real
thing at the sizes of the real thing.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from lclm_jax.config import Config, ModelConfig
from lclm_jax.data.loading.blocks import BlockMaker
from lclm_jax.data.packing.block_sizing import make_mixture, size_blocks
from lclm_jax.data.packing.counter_rng import draw_key, random_bits, uniform
from lclm_jax.data.packing.mixture import Cursor
from lclm_jax.data.packing.sources import OBJECTIVES, Source, SourceSetup
from lclm_jax.data.store.columns import Ragged
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.errors import LclmError
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

_SHORTEST, _LONGEST = 32, 2**19


class SimulatedSplit:
    """Documents of log-normal length (a long tail), with a cut every four tokens.

    Args:
        tokens: About how many tokens all documents have together.
        median: Median tokens of a document.
        sigma: Standard deviation of the logarithm of its length.
        vocab_size: Ids are below this.
    """

    def __init__(self, tokens: float, median: int = 1000, sigma: float = 1.5, vocab_size: int = 512):
        self._arguments = (tokens, median, sigma, vocab_size)
        self._key, self._median, self._sigma, self._vocab = draw_key("simulated", tokens), median, sigma, vocab_size
        self._records = 2**16
        self._records = max(1, round(tokens / float(self.numbers("decoder_tokens", np.arange(2**16)).mean())))

    def __reduce__(self):
        return SimulatedSplit, self._arguments

    def __len__(self) -> int:
        return self._records

    @property
    def digest(self) -> str:
        """Names the documents."""
        return hashlib.sha256(repr(self._arguments).encode()).hexdigest()

    @property
    def mean_tokens(self) -> None:
        """Not known without a look at every document."""

    def numbers(self, name: str, records: np.ndarray) -> np.ndarray:
        """Tokens of each of ``records``, int64."""
        first, second = uniform(self._key, np.asarray(records), 0), uniform(self._key, np.asarray(records), 1)
        normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
        return np.clip(self._median * np.exp(self._sigma * normal), _SHORTEST, _LONGEST).astype(np.int64)

    def lists(self, name: str, records: np.ndarray) -> Ragged | None:
        """The cuts of ``records``; one tokenizer, so no ``encoder_cuts``."""
        if name != "cuts":
            return None
        tokens = self.numbers("decoder_tokens", records)
        sizes = -(-tokens // 4) + 1
        ends = np.cumsum(sizes)
        values = 4 * (np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes))
        values[ends - 1] = tokens
        return Ragged.from_sizes(sizes, values)

    def read_many(self, records: Iterable[int], _columns: Collection[str] | None = None) -> list[dict[str, np.ndarray]]:
        """Columns of ``records``; there are none but those of examples."""
        wanted = np.fromiter(records, np.int64)
        cuts, tokens = self.lists("cuts", wanted), self.numbers("decoder_tokens", wanted)
        assert cuts is not None
        return [
            {
                "decoder_ids": (random_bits(self._key, int(one), np.arange(size)) % self._vocab).astype(np.uint32),
                "cuts": cuts.list(i).astype(np.uint32),
            }
            for i, (one, size) in enumerate(zip(wanted.tolist(), tokens.tolist(), strict=True))
        ]


def simulated_sources(config: Config, stage: str, tokenizers: Tokenizers, tokens: float) -> list[Source]:
    """The sources of ``stage`` that read documents, over a simulated corpus of ``tokens``.

    Raises:
        LclmError: The stage has none.
    """
    ids: tuple[int, int, int] = tuple(tokenizers.decoder.memory_ids)  # type: ignore[assignment]
    model: ModelConfig = config.model.model_copy(update={"memory_token_ids": ids})
    setup = SourceSetup(model, config.pack(stage), tokenizers, config.seed)
    split = SimulatedSplit(tokens, vocab_size=min(ids))
    names = [
        name
        for name in config.stages[stage].mixture
        if config.data.sources[name].objective in ("cpt", "reconstruction")
    ]
    if not names:
        raise LclmError(f"stage {stage} has no source of documents to simulate; name another stage")
    settings = [(name, config.data.sources[name]) for name in names]
    return [OBJECTIVES[one.objective](name, one, cast(PreparedSplit, split), setup) for name, one in settings]


def simulated_rows(config: Config, stage: str, count: int = 256, tokens: float = 1e9) -> tuple[tuple[int, ...], ...]:
    """Positions of each segment of ``count`` packed rows of ``stage``, over a simulated corpus of ``tokens``.

    Raises:
        LclmError: The stage has no source of documents.
    """
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["any text"], 512, Path(folder))
        tokenizer = Tokenizer.from_folder(Path(folder))
        sources = simulated_sources(config, stage, Tokenizers(tokenizer, tokenizer), tokens)
        mixture = make_mixture(config, stage, sources, size_blocks(config, stage, sources))
        make, cursor = BlockMaker(sources, mixture, config.pack(stage), config.seed), Cursor(0, 0, (0,) * len(sources))
        rows: list[tuple[int, ...]] = []
        while len(rows) < count:
            block = make(cursor)
            cursor, sizes = block.after, block.columns["tokens"].tolist()
            rows += [tuple(sizes[first:last]) for first, last in pairwise(block.columns["rows"].tolist())]
    return tuple(rows[:count])

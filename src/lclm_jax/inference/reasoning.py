"""Generation whose reasoning is compressed while it is written.

Each time the policy says so, the reasoning tokens of a row are encoded, the key/value cache is rolled back to what came
before them, and the row goes on from their latents. A row so needs its prompt's positions, about ``1 / N`` of its
reasoning's, and those of the part that is being written, whatever the length of the reasoning. Rows are independent of
each other, and each is what a prompt of the same latents and raw tokens would give.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator, choose, prefill
from lclm_jax.inference.reasoning_policy import ReasoningPolicy, ReasoningRow
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.windows import prompt_batch, spliced
from lclm_jax.model.kv_cache import KVCache
from lclm_jax.model.lclm import decode_cached, logits
from lclm_jax.parallel import use_mesh
from lclm_jax.text.example import Example
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import Params


def reason(
    generator: Generator, examples: Sequence[Example], sampling: Sampling, policy: ReasoningPolicy
) -> list[ReasoningRow]:
    """Continue ``examples`` by at most ``sampling.max_new_tokens`` tokens each, compressing reasoning as it comes.

    A policy that never cuts gives the tokens of ``Generator.generate_examples``.

    Returns:
        One row for each prompt: its new tokens in ``generated``, a stop token included, and all counts.

    Raises:
        LclmError: a row exceeds the decoder's ``max_positions``.
    """
    tokenizers = Tokenizers(generator.decoder_tokenizer, generator.encoder_tokenizer)
    rows = [ReasoningRow(example, tokenizers, generator.model.ratio, policy) for example in examples]
    if not rows:
        return rows
    stops = generator.stops(sampling)
    how = (sampling.temperature, sampling.top_p, sampling.repetition_penalty)
    key = jax.random.key(sampling.seed)
    with use_mesh(generator.mesh):
        state = _Cached.of(generator, examples)
        seen_BV = jnp.zeros(state.logits_BV.shape, bool)
        for step in range(sampling.max_new_tokens):
            tokens_B, seen_BV = choose(state.logits_BV, seen_BV, jax.random.fold_in(key, step), how=how)
            tokens = np.asarray(tokens_B)[: len(rows)].tolist()
            going = [not row.generated or row.generated[-1] not in stops for row in rows]
            for row, token, goes in zip(rows, tokens, going, strict=True):
                if goes:
                    row.append(token)
            going = [goes and token not in stops for goes, token in zip(going, tokens, strict=True)]
            if not any(going) or step + 1 == sampling.max_new_tokens:
                break
            state.go_on(rows, going)
    return rows


class _Cached:
    """The cache of all rows, and the logits behind what it holds."""

    def __init__(self, generator: Generator, logits_BV: jax.Array, cache: KVCache):
        self.generator, self.logits_BV, self.cache = generator, logits_BV, cache

    @classmethod
    def of(cls, generator: Generator, examples: Sequence[Example]) -> "_Cached":
        batch, pooled_BLE, lengths_B = generator.inputs(examples, generator.pooled(examples))
        room = 2 * batch.decoder_tokens.shape[1]
        return cls(
            generator,
            *prefill(generator.params, batch, pooled_BLE, lengths_B, model=generator.model, room=room),
        )

    def go_on(self, rows: Sequence[ReasoningRow], going: Sequence[bool]) -> None:
        """Take each row's newest token into the cache, or what its reasoning is compressed to."""
        limit = self.generator.model.decoder.max_positions
        if (most := max(row.positions for row in rows)) > limit:
            raise LclmError(
                f"a row of {most} positions exceeds the decoder's max_positions={limit}; ask for fewer tokens, or"
                " compress after fewer"
            )
        before = [row.positions - 1 for row in rows]
        found = [row.compress() if goes else None for row, goes in zip(rows, going, strict=True)]
        kept, pieces = [], []
        for row, length, compression in zip(rows, before, found, strict=True):
            newest = Example(np.array(row.generated[-1:], np.int32), np.zeros(1, np.float32), ())
            kept.append(length if compression is None else compression.kept)
            pieces.append(newest if compression is None else compression.piece)
        counts = [len(piece.tokens) if goes else 0 for piece, goes in zip(pieces, going, strict=True)]
        self._extend(pieces, kept, counts)

    def _extend(self, pieces: Sequence[Example], kept: Sequence[int], counts: Sequence[int]) -> None:
        """Roll rows back to ``kept`` positions and append the first ``counts`` of their ``pieces``."""
        generator, rows = self.generator, self.logits_BV.shape[0]
        more = rows - len(pieces)
        pieces, kept, counts = [*pieces, *[pieces[0]] * more], [*kept, *[kept[0]] * more], [*counts, *[0] * more]
        single = max(counts) == 1  # a new token of each row, and no latent: a position, not a bucket of them
        batch, pooled_BLE = prompt_batch(pieces, generator.pooled(pieces), generator.model)
        size = 1 if single else batch.decoder_tokens.shape[1]
        room = self.cache.k.shape[2]
        while room < max(kept) + size:  # what is written behind a row must not reach back into it
            room *= 2
        if room > self.cache.k.shape[2]:
            self.cache = _larger(self.cache, room=room)
        kept_B, counts_B = np.array(kept, np.int32), np.array(counts, np.int32)
        if single:
            cache = self.cache._replace(length_B=jnp.asarray(kept_B))
            logits_BV, self.cache = generator.advance(batch.decoder_tokens[:, 0], cache, jnp.asarray(counts_B))
            self.logits_BV = jnp.where(counts_B[:, None] > 0, logits_BV, self.logits_BV)
            return
        self.logits_BV, self.cache = _extend(
            generator.params,
            batch,
            pooled_BLE,
            (kept_B, counts_B, self.logits_BV),
            self.cache,
            model=generator.model,
        )


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def _extend(
    params: Params,
    batch: Batch,
    pooled_BLE: jax.Array,
    rows: tuple[jax.Array, jax.Array, jax.Array],
    cache: KVCache,
    *,
    model: ModelConfig,
) -> tuple[jax.Array, KVCache]:
    """Logits behind the positions appended to each row, and the cache; a row with none keeps its logits."""
    kept_B, counts_B, before_BV = rows
    x_BSD = spliced(params, model, batch, pooled_BLE)
    positions_BS = batch.decoder_positions + kept_B[:, None]
    hidden_BSD, cache = decode_cached(params, model, x_BSD, positions_BS, cache._replace(length_B=kept_B), counts_B)
    last_B1D = jnp.take_along_axis(hidden_BSD, jnp.maximum(counts_B, 1)[:, None, None] - 1, axis=1)
    return jnp.where(counts_B[:, None] > 0, logits(params, model, last_B1D)[:, 0], before_BV), cache


@functools.partial(jax.jit, static_argnames=("room",))
def _larger(cache: KVCache, *, room: int) -> KVCache:
    """``cache`` with room for so many positions."""
    more = ((0, 0), (0, 0), (0, room - cache.k.shape[2]), (0, 0), (0, 0))
    return KVCache(jnp.pad(cache.k, more), jnp.pad(cache.v, more), cache.length_B)

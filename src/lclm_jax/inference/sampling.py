"""How the next token is picked from the logits."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lclm_jax.errors import LclmError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of one generation; the defaults are greedy.

    Raises:
        LclmError: for a setting outside its limits.
    """

    max_new_tokens: int = 64
    """Tokens after which every row stops."""
    temperature: float = 0.0
    """0: the largest logit; else logits are divided by this and one token is drawn."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probabilities reach this sum."""
    repetition_penalty: float = 1.0
    """Logits of tokens generated before (not of the prompt's) are divided by this if positive, multiplied if not."""
    seed: int = 0
    """Of the draws."""
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end a row; None: those of the decoder's tokenizer (``Tokenizer.stop_ids``)."""

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise LclmError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        bounded = 0 <= self.temperature < math.inf and 0 < self.repetition_penalty < math.inf
        if not bounded or not 0 < self.top_p <= 1:
            raise LclmError(
                f"temperature={self.temperature} must be 0 or more, top_p={self.top_p} in (0, 1] and"
                f" repetition_penalty={self.repetition_penalty} above 0"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise LclmError(f"seed={self.seed} must be a whole number of 64 bits; use a smaller one")


def pick(
    logits_BV: jax.Array, seen_BV: jax.Array, key: jax.Array, temperature: float, top_p: float, penalty: float
) -> jax.Array:
    """The next token of every row, int32 [B].

    Args:
        logits_BV: float32.
        seen_BV: bool; tokens that the row has generated.
        key: of the draw; not used when greedy.
        temperature: static, see ``Sampling``; the same for the last two.
        top_p: nucleus (arXiv 1904.09751).
        penalty: repetition penalty (arXiv 1909.05858), over new tokens only.
    """
    if penalty != 1.0:
        penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token is kept while the sum of the more likely ones is below top_p, so the most likely one always is.
        kept_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV < top_p
        least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)

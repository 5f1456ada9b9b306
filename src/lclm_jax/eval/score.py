"""Losses and right guesses of stretches of examples, teacher-forced."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.packing.rows import assemble_batch, pack_for
from lclm_jax.eval.examples import Target
from lclm_jax.model.lclm import forward, logits, token_nll
from lclm_jax.parallel import batch_parts, batch_sharding, constrain, use_mesh
from lclm_jax.parallel.zigzag import pieces_in
from lclm_jax.text.example import Example
from lclm_jax.types import Params


class Scores(NamedTuple):
    """One row per target, one column per token of its stretch, on the right filled up with zeros."""

    nll: np.ndarray
    """[targets, tokens] float64, nats."""
    hits: np.ndarray
    """[targets, tokens] float64: 1 where the largest logit is the token."""
    weights: np.ndarray
    """[targets, tokens] float64: 1 where there is a token."""


_POSITIONS = 512
"""Positions whose logits are held at once: 0.3 GB in float32 for a vocabulary of 150,000."""


class Scorer:
    """Runs a model over targets in batches of equal shape, so that each call of ``score`` compiles at most once.

    Args:
        params: parameters of ``model``, on the mesh.
        model: its configuration, ``memory_token_ids`` set.
        mesh: devices to run on.
        rows: rows at once; raised to a multiple of the mesh's row axes.
        encoder_pad_id: marker of eos pooling.
        rounded: raises the length of a row, so that rows of many lengths share few compiled shapes; None: to a multiple
            of 8, as rows of one measurement have the same length.
    """

    def __init__(
        self,
        params: Params,
        model: ModelConfig,
        mesh: Mesh,
        rows: int,
        encoder_pad_id: int | None,
        rounded: Callable[[int], int] | None = None,
    ):
        devices = batch_parts(mesh.shape)
        self.params, self.model, self.mesh = params, model, mesh
        self.rows = -(-rows // devices) * devices
        self._multiple = math.lcm(8, pieces_in(mesh.shape["context"]))
        self._pad_id, self._rounded = encoder_pad_id, rounded

    def _round_up(self, length: int) -> int:
        length = length if self._rounded is None else self._rounded(length)
        return -(-length // self._multiple) * self._multiple

    def score(self, targets: Sequence[Target]) -> Scores:
        """Score the stretch of every target; each is one row of a batch, alone."""
        pack = pack_for([[target.example] for target in targets], self.model, self._round_up)
        width = max(target.stop - target.start for target in targets)
        head_width = self._round_up(width)
        scores = Scores(*(np.zeros((len(targets), width)) for _ in Scores._fields))
        markers, span_ratios = self.model.has_markers, bool(self.model.span_ratios)
        for begin in range(0, len(targets), self.rows):
            chosen = targets[begin : begin + self.rows]
            rows: list[list[Example]] = [[target.example] for target in chosen]
            rows += [[]] * (self.rows - len(rows))
            batch = assemble_batch(rows, self.model, pack, self._pad_id)
            # Position t predicts token t + 1.
            first_B = np.zeros(self.rows, np.int32)
            first_B[: len(chosen)] = [target.start - 1 for target in chosen]
            with use_mesh(self.mesh):
                batch = jax.device_put(batch, batch_sharding(self.mesh, markers, span_ratios=span_ratios))
                nll_BW, hits_BW = _fetch(_score(self.params, batch, first_B, model=self.model, width=head_width))
            for row, target in enumerate(chosen):
                size = target.stop - target.start
                scores.nll[begin + row, :size] = nll_BW[row, :size]
                scores.hits[begin + row, :size] = hits_BW[row, :size]
                scores.weights[begin + row, :size] = 1
        return scores


def _fetch(arrays: Any) -> Any:
    """Global arrays as NumPy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)


@functools.partial(jax.jit, static_argnames=("model", "width"))
def _score(
    params: Params, batch: Batch, first_B: jax.Array, *, model: ModelConfig, width: int
) -> tuple[jax.Array, jax.Array]:
    """(nll_BW in nats, whether the largest logit is the target) of ``width`` positions of each row from ``first_B`` on.

    The head reads these positions alone: a stretch is often a tenth of its row, and the head as large as many layers.
    Positions past the end of a row repeat its last one.
    """
    # A stretch may lie on other devices than the rest of its row.
    hidden_BSD = constrain(forward(params, model, batch), "batch", "kv_seq", "embed")
    at_BW = jnp.minimum(first_B[:, None] + jnp.arange(width)[None], hidden_BSD.shape[1] - 1)
    hidden_BWD = jnp.take_along_axis(hidden_BSD, at_BW[..., None], axis=1)
    hidden_BWD = constrain(hidden_BWD, "batch", "seq", "embed")
    targets_BW = jnp.take_along_axis(batch.targets, at_BW, axis=1)
    nll_BW = token_nll(params, model, hidden_BWD, targets_BW)

    def best(hidden_BD):
        return jnp.argmax(logits(params, model, hidden_BD[:, None])[:, 0], axis=-1)

    # A few positions of all rows at a time, never [B, W, V]: one at a time would read the whole head for each of them.
    at_once = max(1, _POSITIONS // hidden_BWD.shape[0])
    guesses_WB = jax.lax.map(best, hidden_BWD.swapaxes(0, 1), batch_size=at_once)
    return nll_BW, targets_BW == guesses_WB.T

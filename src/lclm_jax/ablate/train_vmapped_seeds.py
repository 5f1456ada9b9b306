"""The seeds of a variant trained as one program: ``vmap`` of the train step over stacked states and batches.

For models far smaller than the machine. Each seed has its own parameters, row order and random keys, and learns what
``lclm train`` with this seed learns; stages follow one another as there. Nothing is saved: a variant takes minutes.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.batch import Batch
from lclm_jax.config import Config
from lclm_jax.data.loading.loader import Loader, make_loader
from lclm_jax.data.loading.position import BatchStats
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params, init_params
from lclm_jax.parallel import use_mesh
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.train.checkpoints.provenance import parent_of
from lclm_jax.train.core.initial_state import initial_state
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.step import ratio_of, train_step_function

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


class Trained(NamedTuple):
    """What training left, over the seeds."""

    params: list[Any]
    """Per seed."""
    steps: list[int]
    """Of all stages, one after another."""
    losses: np.ndarray
    """[seeds, steps] float64, nats per token; NaN where a step had no loss."""
    raw_tokens: float
    """Of all seeds, in the steps that ``step_seconds`` counts."""
    step_seconds: float
    compile_seconds: float

    @classmethod
    def joined(cls, parts: Sequence["Trained"]) -> "Trained":
        """What several trainings left, of the same steps over different seeds."""
        return cls(
            [params for part in parts for params in part.params],
            parts[0].steps,
            np.concatenate([part.losses for part in parts]),
            sum(part.raw_tokens for part in parts),
            sum(part.step_seconds for part in parts),
            sum(part.compile_seconds for part in parts),
        )


def train_together(configs: Sequence[Config], tokenizers: Tokenizers, mesh: Mesh, progress: Progress) -> Trained:
    """Train the runs ``configs``, which differ in their seed alone, from random weights.

    Raises:
        LclmError: they start from imported weights, or draw several ratios a stage: these have no common program.
    """
    first = configs[0]
    if first.init.given:
        raise LclmError("seeds trained together start from random weights; set together: false, or remove init")
    if any(stage.ratios for stage in first.stages.values()) and len(configs) > 1:
        raise LclmError("a stage with several ratios draws them by seed; train its seeds one by one")
    with use_mesh(mesh):
        params = [init_params(config.model, jax.random.key(config.seed)) for config in configs]
        losses, tokens, seconds, compiling = [], 0.0, 0.0, 0.0
        for name in first.stages:
            if name != next(iter(first.stages)) and parent_of(first, name) is None:
                params = [init_params(config.model, jax.random.key(config.seed)) for config in configs]
            stage = _train_stage(configs, name, params, tokenizers, progress)
            params = stage.params
            losses.append(stage.losses)
            tokens, seconds = tokens + stage.raw_tokens, seconds + stage.step_seconds
            compiling += stage.compile_seconds
    together = np.concatenate(losses, axis=1)
    return Trained(params, list(range(together.shape[1])), together, tokens, seconds, compiling)


def _train_stage(
    configs: Sequence[Config], name: str, params: list[Any], tokenizers: Tokenizers, progress: Progress
) -> Trained:
    first, number = configs[0], list(configs[0].stages).index(name)
    settings = first.stages[name]
    optimizer = make_optimizer(first.train.optimizer, settings, abstract_params(first.model))
    states = [initial_state(one, optimizer, config.seed + number) for one, config in zip(params, configs, strict=True)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    train_step = jax.jit(jax.vmap(train_step_function(first, name, optimizer)), donate_argnums=0)
    losses, tokens, seconds, compiling, compiled = [], 0.0, 0.0, 0.0, set()
    with ExitStack() as stack:
        loaders = [stack.enter_context(make_loader(config, name, tokenizers)) for config in configs]
        for step, (batch, stats) in enumerate(_batches(loaders)):
            ratio = ratio_of(jax.tree.map(lambda leaf: leaf[0], batch))
            begun = time.perf_counter()
            state, metrics = train_step(state, batch)
            losses.append(np.asarray(metrics["loss_nats"], np.float64))
            spent = time.perf_counter() - begun
            if ratio in compiled:
                seconds, tokens = seconds + spent, tokens + sum(one.raw_tokens for one in stats)
            else:
                compiled.add(ratio)
                compiling += spent
            progress(name, step + 1, settings.steps)
    own = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], state.params) for seed in range(len(configs))]
    return Trained(own, [], np.stack(losses, axis=1), tokens, seconds, compiling)


def _batches(loaders: Sequence[Loader]) -> Iterator[tuple[Batch, list[BatchStats]]]:
    """The next batch of every loader, stacked: every array gains the axis of the seeds in front."""
    for together in zip(*loaders, strict=True):
        batches = [batch for batch, _ in together]
        yield jax.tree.map(lambda *rows: np.stack(rows), *batches), [stats for _, stats in together]

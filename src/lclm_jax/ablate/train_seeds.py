"""How the seeds of a variant are trained: one after another as ``lclm train`` does it, or all as one program.

One program is a ``vmap`` of the train step over stacked states and batches, for models far smaller than the machine.
Each seed has its own parameters, row order and random keys, and learns what ``lclm train`` learns with this seed.
Nothing is saved: a variant takes minutes.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.batch import Batch
from lclm_jax.config import Config, RunPaths
from lclm_jax.config.distill import SAME
from lclm_jax.data.loading.loader import Loader, make_loader
from lclm_jax.data.loading.position import BatchStats
from lclm_jax.errors import LclmError
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.model.lclm import abstract_params, init_params
from lclm_jax.ops.run_folder import own_run
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.train.checkpoints.provenance import parent_of
from lclm_jax.train.checkpoints.run_params import load_params
from lclm_jax.train.core.initial_state import initial_state
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.stage_run import StepFunction
from lclm_jax.train.core.stages import train
from lclm_jax.train.core.step import ratio_of, train_step_function
from lclm_jax.train.logging.records import NAME, read_metrics, working_seconds
from lclm_jax.types import Params

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


class Trained(NamedTuple):
    """The outcome of training, over the seeds."""

    params: list[Params]
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
        """The outcomes of the same steps over different seeds as one."""
        return cls(
            [params for part in parts for params in part.params],
            parts[0].steps,
            np.concatenate([part.losses for part in parts]),
            sum(part.raw_tokens for part in parts),
            sum(part.step_seconds for part in parts),
            sum(part.compile_seconds for part in parts),
        )


def train_single(config: Config) -> Trained:
    """Train the run ``config`` with checkpoints, on any mesh and any number of processes, and read its records back.

    Raises:
        Interrupted: the process was asked to stop; the state was saved, and the same call resumes from it.
    """
    with own_run(config) if jax.process_index() == 0 else nullcontext():
        train(config, read_imports=imported_params)
    folders = [RunPaths(config).stage(name) for name in config.stages]
    records = [record for folder in folders for record in read_metrics(folder / NAME)]
    losses = [np.nan if record["loss_nats"] is None else record["loss_nats"] for record in records]
    return Trained(
        params=[load_params(config, mesh=make_mesh(config.mesh))],
        steps=list(range(len(records))),
        losses=np.array([losses], np.float64),
        raw_tokens=float(sum(record["raw_tokens"] for record in records)),
        step_seconds=float(sum(working_seconds(record) for record in records)),
        compile_seconds=float(sum(record.get("compile_seconds", 0.0) for record in records)),
    )


def train_vmapped(configs: Sequence[Config], tokenizers: Tokenizers, mesh: Mesh, progress: Progress) -> Trained:
    """Train the runs ``configs``, which differ in their seed alone, from random weights, as one program.

    Raises:
        LclmError: they start from imported weights, or draw several ratios in a stage, so they have no common program.
    """
    first = configs[0]
    if first.init.given:
        raise LclmError(
            "seeds that are trained together start from random weights; set together: false, or remove init"
        )
    if any(stage.distill is not None and stage.distill.teacher != SAME for stage in first.stages.values()):
        raise LclmError("seeds that are trained together read no folder; use distill.teacher: same, or together: false")
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
    configs: Sequence[Config], name: str, params: list[Params], tokenizers: Tokenizers, progress: Progress
) -> Trained:
    first, number = configs[0], list(configs[0].stages).index(name)
    settings = first.stages[name]
    optimizer = make_optimizer(first.train.optimizer, settings, abstract_params(first.model))
    states = [initial_state(one, optimizer, config.seed, number) for one, config in zip(params, configs, strict=True)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    train_step: StepFunction = jax.jit(jax.vmap(train_step_function(first, name, optimizer)), donate_argnums=0)
    if settings.teacher_copied:
        # A teacher of its own for each seed; the state's arrays are given up.
        own_decoders = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one["decoder"] for one in params))
        train_step = functools.partial(train_step, teacher=own_decoders)
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

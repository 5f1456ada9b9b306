"""One optimizer step: pure, jitted, the same program for every step of a stage."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped

from lclm_jax.batch import TEACHER_ARRAYS, Batch, check_batch_rows
from lclm_jax.config import Config
from lclm_jax.config.train import parse_skip_range
from lclm_jax.model.lclm import logical_axes
from lclm_jax.parallel import batch_parts, batch_sharding, row_parts
from lclm_jax.train.core.freeze import merge, split
from lclm_jax.train.core.gather import gather, scatter
from lclm_jax.train.core.initial_state import state_shardings
from lclm_jax.train.core.loss import DistilledLoss, LossSums, distilled_loss_sums, divisor, loss_sums
from lclm_jax.train.core.optimizer import Optimizer
from lclm_jax.train.core.stage_run import StepFunction
from lclm_jax.train.core.state import TrainState, step_key
from lclm_jax.types import Params, PyTree


def make_train_step(config: Config, stage_name: str, optimizer: Optimizer, mesh: Mesh) -> Wrapped:
    """The jitted ``train_step(state, batch) -> (state, metrics)`` of a stage; the state is donated.

    Call it under ``use_mesh(mesh)``, with batches placed by ``put_batch``. ``metrics`` are float32 scalars:
    ``loss_nats``, ``loss_tokens``, ``nonfinite`` and ``skipped`` (1.0 or 0.0), and those of ``Optimizer.update``;
    ``loss_nats/OBJECTIVE`` (a mean over tokens, NaN where the step has none) and ``loss_tokens/OBJECTIVE`` of batches
    that tell objectives apart; ``divergence_nats`` from the teacher where the stage is distilled, over the positions
    that ``loss_nats`` counts; and ``finite_rows``, bool [rows]: whether a row's own loss was finite. Where the stage
    ``teacher_copied``, the step takes the teacher's decoder as ``teacher``.

    Raises:
        LclmError: the rows of a microbatch do not divide over the mesh.
    """
    stage = config.stages[stage_name]
    check_batch_rows(stage_name, stage.batch_rows, stage.microbatches, batch_parts(mesh.shape))
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        train_step_function(config, stage_name, optimizer),
        donate_argnums=0,
        out_shardings=(state_shardings(config.model, optimizer, mesh), replicated),
    )


def train_step_function(config: Config, stage_name: str, optimizer: Optimizer) -> StepFunction:
    """The step of ``make_train_step`` before jit: a pure function of (state, batch)."""
    stage, train, stage_objectives = config.stages[stage_name], config.train, config.objectives(stage_name)
    skip_ranges = [parse_skip_range(text) for text in stage.skip_steps]

    def train_step(
        state: TrainState, batch: Batch, teacher: Params | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        weights = gather(state.params, config.model) if train.gather_once else state.params
        trainable, frozen = split(weights, optimizer.labels)
        key, model = step_key(state), config.model.model_copy(update={"ratio": ratio_of(batch)})
        objectives = stage_objectives if batch.objectives is not None else []

        def gradients(microbatch: Batch, number: jax.Array | int) -> tuple[PyTree, LossSums, jax.Array]:
            def total(leaves: PyTree) -> tuple[jax.Array, tuple[LossSums, jax.Array]]:
                own_key, z_loss = jax.random.fold_in(key, number), train.z_loss
                inputs, normalisation = (merge(frozen, leaves), model, microbatch), train.loss_normalisation
                if stage.distill is None:
                    sums, finite_B = loss_sums(*inputs, normalisation, own_key, z_loss, objectives)
                else:
                    loss = DistilledLoss(stage.distill, normalisation, z_loss, objectives)
                    sums, finite_B = distilled_loss_sums(*inputs, loss, own_key, teacher)
                return sums.objective(), (sums, finite_B)

            grads, (sums, finite_B) = jax.grad(total, has_aux=True)(trainable)
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), owned(grads)), sums, finite_B

        def owned(grads: PyTree) -> PyTree:
            return scatter(grads, split(logical_axes(model), optimizer.labels)[0]) if train.gather_once else grads

        zeros = owned(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable))
        zero = (zeros, LossSums.zero(objectives, stage.distill is not None))
        grads, sums, finite_B = _accumulate(gradients, zero, batch, stage.microbatches)
        grads = jax.tree.map(lambda leaf: leaf / divisor(sums.weight), grads)
        loss = sums.mean()
        skipped = _in_ranges(state.step, skip_ranges)
        apply = jnp.isfinite(loss) & ~skipped
        rounding_key = jax.random.fold_in(key, stage.microbatches)  # smaller numbers are those of the microbatches
        params, opt_state, metrics = optimizer.update(
            grads, state.opt_state, state.params, state.step, apply, rounding_key
        )
        metrics |= {
            "loss_nats": loss,
            "loss_tokens": sums.tokens,
            "nonfinite": ~(jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])),
            "skipped": skipped,
            **_by_objective(sums),
            **({} if sums.divergence is None else {"divergence_nats": sums.divergence / divisor(sums.weight)}),
        }
        metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()} | {"finite_rows": finite_B}
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return train_step


def ratio_of(batch: Batch) -> int:
    """N of a batch: encoder positions per latent slot. A stage with several ratios compiles a step for each."""
    ratio: int = math.prod(batch.encoder_tokens.shape[1:]) // batch.latent_segments.shape[1]
    return ratio


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Place the rows of this process (NumPy) on its devices as part of the global batch."""
    teacher = [name for name in TEACHER_ARRAYS if getattr(batch, name) is not None]
    shardings = batch_sharding(
        mesh, batch.marker_index is not None, batch.objectives is not None, teacher, batch.latent_ratios is not None
    )
    if jax.process_count() == 1:
        whole: Batch = jax.device_put(batch, shardings)
        return whole
    parts, count = row_parts(mesh)

    def place(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
        size = rows.shape[0] // len(parts)
        shape = (size * count, *rows.shape[1:])

        def piece(index: PyTree) -> PyTree:  # of one part, as rows are cut into parts
            at = parts.index(index[0].indices(shape[0])[0] // size) * size
            return rows[(slice(at, at + size), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, piece)

    with jax.transfer_guard_host_to_device("allow"):  # JAX counts this explicit transfer as an implicit one
        placed: Batch = jax.tree.map(place, batch, shardings)
    return placed


def _accumulate(
    gradients: Callable[[Batch, jax.Array | int], tuple[PyTree, LossSums, jax.Array]],
    zero: tuple[PyTree, LossSums],
    batch: Batch,
    microbatches: int,
) -> tuple[PyTree, LossSums, jax.Array]:
    """Sums of gradients and losses over ``microbatches`` numbered, equal cuts of the batch's rows; finite rows.

    ``zero``: where both sums begin.
    """
    if microbatches == 1:
        return gradients(batch, 0)

    def cut(rows: jax.Array) -> jax.Array:
        # Row r goes to microbatch r % microbatches: every device cuts its own rows and none moves.
        apart = rows.reshape(rows.shape[0] // microbatches, microbatches, *rows.shape[1:])
        return jnp.moveaxis(apart, 1, 0)

    def add(carry: tuple[PyTree, LossSums], one: tuple[Batch, jax.Array]) -> tuple[tuple[PyTree, LossSums], jax.Array]:
        grads, sums, finite_B = gradients(*one)
        return (jax.tree.map(jnp.add, carry[0], grads), carry[1].add(sums)), finite_B

    (grads, sums), finite = jax.lax.scan(add, zero, (jax.tree.map(cut, batch), jnp.arange(microbatches)))
    return grads, sums, finite.T.reshape(-1)


def _by_objective(sums: LossSums) -> dict[str, jax.Array]:
    """Mean loss and tokens of each objective; NaN where it has no token."""
    metrics: dict[str, jax.Array] = {}
    for name, (nats, tokens) in sums.by_objective.items():
        metrics |= {f"loss_nats/{name}": jnp.where(tokens > 0, nats / divisor(tokens), jnp.nan)}
        metrics |= {f"loss_tokens/{name}": tokens}
    return metrics


def _in_ranges(step: jax.Array, ranges: list[tuple[int, int]]) -> jax.Array:
    """Whether ``step`` lies in one of the inclusive ``ranges``."""
    inside = jnp.zeros((), bool)
    for first, last in ranges:
        inside |= (step >= first) & (step <= last)
    return inside

"""Bytes per device by formula: what a train step is given, and what it holds at its fullest.

Parameters, float32 gradients and the optimizer's state, cut over the devices that share them; activations in the
compute dtype.
A first guess that leaves implausible plans out before anything is compiled; the compiled number decides.
"""

import functools
import math
from typing import NamedTuple

import jax

from lclm_jax.batch import teacher_shapes
from lclm_jax.config.model import BackboneConfig, ModelConfig
from lclm_jax.config.registry.remat_policies import RematPolicy
from lclm_jax.config.train import OptimizerConfig
from lclm_jax.config.tree import Config, StageConfig
from lclm_jax.model.flops import kernel_sizes, through_encoder
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import batch_parts
from lclm_jax.plan.parameters import parameter_counts
from lclm_jax.train.core.loss import teacher_model
from lclm_jax.train.core.optimizer import make_optimizer

_FLOAT32 = 4
_SIZE = {"float32": 4, "bfloat16": 2}


class MemoryEstimate(NamedTuple):
    """Bytes on one device."""

    arguments: float
    """Parameters, the optimizer's state and the batch."""
    gradients: float
    saved: float
    """Activations that wait for the backward pass, and weights that stay gathered (``train.gather_once``)."""
    working: float
    """The largest of what is alive for a while only: one layer's backward pass, or the cross-entropy."""

    @property
    def peak(self) -> float:
        """All at once."""
        return sum(self)


def estimate(config: Config, stage_name: str, mesh: dict[str, int]) -> MemoryEstimate:
    """Bytes on one device of ``mesh`` (axis -> size) for a step of ``stage_name``.

    LoRA, and the activations of attention adapters, are left out: they are small beside the rest.
    """
    model, stage, pack = config.model, config.stages[stage_name], config.pack(stage_name)
    counts = parameter_counts(model)
    shards = mesh["fsdp"] * mesh["context"] * mesh["tensor"]
    learned = sum(count for part, count in counts.items() if stage.peak_lr(part) is not None)
    rows = stage.batch_rows / stage.microbatches / batch_parts(mesh)
    positions = rows * pack.row_length / mesh["context"]
    encoded = stage.batch_rows / stage.microbatches * pack.encoder_rows * pack.encoder_row_length
    encoded /= math.prod(mesh.values())
    batch = 4.0 * (6 * pack.row_length + 4 * pack.encoder_rows * pack.encoder_row_length) * stage.batch_rows
    state = _optimizer_state(model.model_copy(update={"remat": "full"}), config.train.optimizer, _trained(stage))
    arguments = (_SIZE[model.param_dtype] * sum(counts.values()) + state.sharded) / shards + state.replicated
    arguments += batch / batch_parts(mesh) + _teacher_bytes(config, stage_name, shards)
    twins = rows * (config.twin_length(stage_name) or 0) / mesh["context"]
    size = _SIZE[model.compute_dtype]
    saved = _saved(model, stage, positions, encoded, size)
    working = max(
        _layer(model.decoder, max(positions, twins), size, mesh["tensor"]),
        _layer(model.encoder, encoded, size, 1),
        _cross_entropy(model, positions, mesh["tensor"]) * (1 if stage.distill is None else 2),
    )
    # Float32 gradients are cut like the parameters; while they are summed over microbatches there are two of them.
    gradients = _FLOAT32 * learned / shards * (2 if stage.microbatches > 1 else 1)
    if config.train.gather_once:
        saved += size * sum(counts.values()) / mesh["tensor"]
    return MemoryEstimate(arguments, gradients, saved, working)


def _teacher_bytes(config: Config, stage_name: str, shards: int) -> float:
    """Of the arrays that distillation adds to a batch, and of a teacher's weights that are not the model's own."""
    stage = config.stages[stage_name]
    shapes = teacher_shapes(stage.batch_rows, *config.teacher_sizes(stage_name)).values()
    arrays = sum(_FLOAT32 * math.prod(shape) for shape, _ in shapes)
    if stage.distill is None or not stage.teacher_copied:
        return arrays / shards
    model = teacher_model(config.model, stage.distill)
    return (arrays + _SIZE[model.param_dtype] * parameter_counts(model)["decoder"]) / shards


class OptimizerState(NamedTuple):
    """Bytes of an optimizer's state: of what is cut like its parameter, and of what every device has whole."""

    sharded: int
    replicated: int


def _trained(stage: StageConfig) -> tuple[tuple[str, float], ...]:
    """(part, learning rate) of what a stage trains; the rates do not matter."""
    return tuple(sorted((part, 1e-5) for part, rate in stage.lr if rate is not None))


@functools.cache
def _optimizer_state(
    model: ModelConfig, settings: OptimizerConfig, trained: tuple[tuple[str, float], ...]
) -> OptimizerState:
    """Of the state that the optimizer really makes: factored moments, momentum alone and averages as they are."""
    params = abstract_params(model)
    stage = StageConfig.model_validate({"lr": dict(trained), "steps": 1, "batch_rows": 1, "mixture": {"any": 1.0}})
    optimizer = make_optimizer(settings, stage, params)
    places = optimizer.state_shardings(params, jax.tree.map(lambda leaf: True, params), False)
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    found = {True: 0, False: 0}
    for leaf, is_cut in zip(leaves, jax.tree.leaves(places), strict=True):
        found[is_cut] += leaf.size * leaf.dtype.itemsize
    return OptimizerState(found[True], found[False])


def _saved(model: ModelConfig, stage: StageConfig, positions: float, encoded: float, size: int) -> float:
    """What the scans over layers keep: their carry, and what the remat policy names."""
    total = _kept(model.decoder, model.remat_of("decoder"), size) * positions
    kept = _kept(model.encoder, model.remat_of("encoder"), size) * encoded
    return total + kept * through_encoder(model, stage)


def _kept(shape: BackboneConfig, remat: RematPolicy, size: int) -> float:
    """Bytes that all layers keep per position."""
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = heads * size + shape.num_heads * _FLOAT32  # the output and the log-sum-exp
    widths = {"q": heads, "k": kv, "v": kv, "o": shape.hidden_size, "gate": shape.mlp_size, "up": shape.mlp_size}
    dots = sum(width for name, width in widths.items() if remat.saves_dots or name in remat.device) * size
    kept = shape.hidden_size * size + remat.saves_attention * attention + dots
    if not remat.recomputes:
        # Norms keep what they read and what they scale in float32; the MLP its activation, factors and product.
        norms = (2 * shape.hidden_size + (heads + kv) * shape.qk_norm) * 2 * _FLOAT32
        kept += norms + (shape.hidden_size + 3 * shape.mlp_size) * size
    return float(shape.num_layers * kept)


def _layer(shape: BackboneConfig, positions: float, size: int, tensor: int) -> float:
    """Bytes of one layer in the backward pass: its activations and their gradients, and its gathered weights."""
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    alive = 3 * shape.hidden_size + (2 * (heads + kv) + 3 * shape.mlp_size) / tensor
    weights = sum(kernel_sizes(shape).values()) / tensor
    return positions * alive * size + weights * (size + _FLOAT32)


def _cross_entropy(model: ModelConfig, positions: float, tensor: int) -> float:
    """Bytes of the logits that exist at once with their gradient, and of the hidden states' float32 gradient."""
    shape = model.decoder
    logits = model.loss_chunk * shape.vocab_size / tensor
    return logits * (2 * _FLOAT32) + positions * shape.hidden_size * _FLOAT32

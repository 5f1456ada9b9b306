"""A plan without a compiler: FLOPs and collective bytes of a step by formula, and the time they take at best.

Memory traffic has no formula here, so that the time is a looser bound than that of a compiled program.
"""

from typing import NamedTuple

from lclm_jax.config.registry.attention_backends import backend_on
from lclm_jax.config.registry.remat_policies import remat_of
from lclm_jax.config.tree import Config
from lclm_jax.model.flops import step_flops
from lclm_jax.parallel import batch_parts
from lclm_jax.plan.parameters import parameter_counts
from lclm_jax.plan.topologies import Topology

_BFLOAT16 = 2


class AnalyticCost(NamedTuple):
    """One step; bytes and FLOPs of one chip."""

    flops: float
    """Executed."""
    collective_bytes: dict[str, float]
    """Mesh axis -> bytes received."""
    compute_s: float
    network_s: float

    @property
    def step_s(self) -> float:
        """Arithmetic, then collectives, which do not overlap with it."""
        return self.compute_s + self.network_s


def analytic_cost(config: Config, stage: str, topology: Topology) -> AnalyticCost:
    """The step of ``stage`` on ``config.mesh`` over ``topology``."""
    flops = step_flops(config.model, config.stages[stage], config.pack(stage), backend_of(config, topology)).executed
    received = {axis: count for axis, count in _collective_bytes(config, stage, topology).items() if count}
    seconds = sum(axis_seconds(axis, count, mesh_sizes(config, topology), topology) for axis, count in received.items())
    share = flops / topology.num_devices
    return AnalyticCost(share, received, share / topology.chip.flops, seconds)


def backend_of(config: Config, topology: Topology) -> str:
    """The attention that the formula of FLOPs assumes on ``topology``."""
    return backend_on("tpu" if topology.chip.dimensions else "gpu", config.model.attention)


def mesh_sizes(config: Config, topology: Topology) -> dict[str, int]:
    """Mesh axis -> size on ``topology``, with -1 filled in."""
    sizes = {axis: getattr(config.mesh, axis) for axis in ("replica", "fsdp", "context", "tensor")}
    given = 1
    for size in sizes.values():
        given *= size if size > 0 else 1
    return {axis: size if size > 0 else max(1, topology.num_devices // given) for axis, size in sizes.items()}


def _collective_bytes(config: Config, stage: str, topology: Topology) -> dict[str, float]:
    """Bytes along each axis in a step."""
    sizes = mesh_sizes(config, topology)
    whole = topology.chip.dimensions > 0 and sizes["fsdp"] * sizes["context"] == topology.devices_per_slice
    return _bytes_of_weights(config, stage, sizes, whole) | _bytes_of_positions(config, stage, sizes)


def _bytes_of_weights(config: Config, stage: str, sizes: dict[str, int], whole: bool) -> dict[str, float]:
    """Weights and gradients in bfloat16, once for each microbatch.

    Weights are gathered for the forward and again for the backward pass, or once a step (``train.gather_once``).
    Gradients are scattered once; on TPUs a reduction over the ``whole`` slice is compiled to an all-reduce, of twice
    the bytes.
    """
    settings = config.stages[stage]
    each = settings.microbatches / sizes["tensor"]
    counts = parameter_counts(config.model)
    weights = sum(counts.values()) * (1 / 2 / sizes["tensor"] if config.train.gather_once else each)
    learned = each * sum(count for part, count in counts.items() if settings.peak_lr(part) is not None)
    return bytes_of_weights(weights, learned, sizes, whole)


def bytes_of_weights(parameters: float, learned: float, sizes: dict[str, int], whole: bool) -> dict[str, float]:
    """Bytes along each axis of a microbatch: ``parameters`` are gathered twice, gradients of those learned reduced."""
    weights, gradients = _BFLOAT16 * parameters, _BFLOAT16 * learned
    n, copies = sizes["fsdp"] * sizes["context"], sizes["replica"]
    return {
        "replica": gradients / n * 2 * (copies - 1) / copies,
        "fsdp": (2 * weights + (2 if whole else 1) * gradients) * (n - 1) / n,
    }


def _bytes_of_positions(config: Config, stage: str, sizes: dict[str, int]) -> dict[str, float]:
    """Activations of the decoder, in bfloat16.

    Along ``context`` each layer gathers the keys and values of the whole row, again if it is recomputed, and
    scatters the sum of their gradients. Along ``tensor`` it gathers and scatters what flows through it: forward,
    backward and again.
    """
    shape, context, tensor = config.model.decoder, sizes["context"], sizes["tensor"]
    rows = config.stages[stage].batch_rows / batch_parts(sizes)
    bytes_ = rows * config.pack(stage).row_length * shape.num_layers * _BFLOAT16
    keys_and_values = bytes_ * 2 * shape.num_kv_heads * shape.head_dim / tensor
    times = 3 if remat_of(config.model.remat, "decoder").recomputes else 2
    return {
        "context": times * keys_and_values * (context - 1) / context,
        "tensor": 12 * bytes_ * shape.hidden_size / context * (tensor - 1) / tensor,
    }


def axis_seconds(axis: str, count: float, sizes: dict[str, int], topology: Topology) -> float:
    """Time of ``count`` bytes: inside a slice over all its links, between slices what its chips share out."""
    chip = topology.chip
    links = 2 * chip.dimensions if all(topology.wrap) else max(chip.dimensions, 1)
    fast = count / (links * chip.link_bytes_per_s)
    if topology.slices == 1 or axis in ("context", "tensor"):
        return fast
    if axis == "replica":
        return count / chip.dcn_bytes_per_s
    crosses = sizes["replica"] % topology.slices != 0  # parameters are cut over slices
    return fast + (count / topology.devices_per_slice / chip.dcn_bytes_per_s if crosses else 0.0)

"""How long a step is expected to take by formula, which needs no compiler: work by its kind at measured rates."""

from typing import Literal

from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.config.tree import Config
from lclm_jax.kernels.tpu.splash import block_sizes
from lclm_jax.model.flops import step_flops, through_encoder
from lclm_jax.model.layers import SHARERS
from lclm_jax.parallel import batch_parts
from lclm_jax.plan.analytic_cost import analytic_cost, backend_of, mesh_sizes
from lclm_jax.plan.expected.expected import Expected
from lclm_jax.plan.expected.rates import EXPOSED, Rates, rates_of
from lclm_jax.plan.expected.work import (
    Attention,
    Segments,
    Tower,
    head_seconds,
    lookup_seconds,
    optimizer_seconds,
    tower_seconds,
    visible_pairs,
)
from lclm_jax.plan.parameters import parameter_counts
from lclm_jax.plan.topologies import Topology

_Backbone = Literal["encoder", "decoder"]


def forecast(config: Config, stage: str, topology: Topology, segments: Segments | None = None) -> Expected:
    """The step of ``stage`` on ``config.mesh`` over ``topology``.

    Args:
        config: mesh and model.
        stage: a name in ``config.stages``.
        topology: chips and how they are wired.
        segments: of some rows of the stage; None: every row is one segment.
    """
    settings, pack, model = config.stages[stage], config.pack(stage), config.model
    segments = segments or ((pack.row_length,),)
    sizes, chip, rates = mesh_sizes(config, topology), topology.chip, rates_of(topology.chip)
    flops = step_flops(model, settings, pack, backend_of(config, topology))
    found = towers(config, stage, topology, segments)
    parts = [tower_seconds(tower, chip, rates) for tower in found]
    decoder = found[-1]
    learns = settings.peak_lr("decoder") is not None
    small = (flops.adapter.executed + flops.teacher.executed) / topology.num_devices / (chip.flops * rates.products)
    head = head_seconds(model.decoder, decoder.positions / decoder.tensor, 3 + learns, chip, rates)
    counts = parameter_counts(model)
    trained = sum(count for part, count in counts.items() if settings.peak_lr(part) is not None)
    share = sizes["fsdp"] * sizes["context"]
    visible = visible_pairs(segments, True) / visible_pairs(((pack.row_length,),), True)
    return Expected(
        products_s=sum(part.products for part in parts) + head + small,
        kernels_s=sum(part.kernels for part in parts),
        elementwise_s=sum(part.elementwise for part in parts),
        rows_s=sum(_lookups(tower, share, settings.peak_lr(name) is not None, rates)
                   for tower, name in ((found[0], "encoder"), (decoder, "decoder"))),
        optimizer_s=optimizer_seconds(trained / share / sizes["tensor"], chip),
        network_s=EXPOSED * analytic_cost(config, stage, topology).network_s,
        segments_per_row=sum(map(len, segments)) / len(segments),
        visible_share=visible,
        visible_flops=flops.model - (1 - visible) * _attention_flops(config, stage),
        compiled=False,
        assumed_from=rates.assumed_from,
    )  # fmt: skip


def towers(config: Config, stage: str, topology: Topology, segments: Segments) -> list[Tower]:
    """The encoder's stacks and, last, the decoder, over the rows of one device."""
    settings, pack, model = config.stages[stage], config.pack(stage), config.model
    sizes = mesh_sizes(config, topology)
    learns = through_encoder(model, settings)
    found = []
    for count, ratio in model.encoder_stacks:
        length, window = pack.encoder_row_length // ratio, model.window // ratio
        windows = (window,) * (length // window) + ((length % window,) if length % window else ())
        found.append(
            Tower(
                model.encoder.model_copy(update={"num_layers": count}),
                settings.batch_rows * pack.encoder_rows / topology.num_devices,
                length,
                attention_of(config, topology, "encoder", length, (windows,)),
                model.remat_of("encoder").repeated,
                settings.peak_lr("encoder") is not None,
                learns,
                eight_bit=model.quantize.encoder != "none",
            )
        )
    found.append(
        Tower(
            model.decoder,
            settings.batch_rows / batch_parts(sizes) / sizes["context"],
            pack.row_length,
            attention_of(config, topology, "decoder", pack.row_length, segments),
            model.remat_of("decoder").repeated,
            settings.peak_lr("decoder") is not None,
            True,
            sizes["tensor"],
            eight_bit=model.quantize.decoder != "none",
        )
    )
    return found


def attention_of(config: Config, topology: Topology, tower: _Backbone, length: int, segments: Segments) -> Attention:
    """The attention kernels of ``tower`` over rows of ``length`` in ``segments``."""
    model, backend = config.model, backend_of(config, topology)
    if backend == "splash" and tower == "decoder" and mesh_sizes(config, topology)["context"] > 1:
        backend = "pallas_tpu"  # splash knows no rows that are cut
    cost = ATTENTION_BACKENDS[backend].cost
    forward = backward = cost.block or length
    products = cost.backward_products
    if backend == "splash":
        head_dim = getattr(model, tower).head_dim
        blocks = block_sizes(-(-length // 128) * 128, head_dim, model.compute_dtype, topology.chip.name)
        forward, backward, products = blocks.forward, blocks.backward, 5 if blocks.fused else 7
    causal = tower == "decoder" or model.mask == "causal"
    again = not model.remat_of(tower).saves_attention
    return Attention(backend, forward, backward, products, causal, segments, again)


def _lookups(tower: Tower, share: int, learns: bool, rates: Rates) -> float:
    """A device looks up its columns for the positions of those it shares the work with (``model.layers.lookup``)."""
    sharers = min((size for size in range(SHARERS, share) if share % size == 0), default=share)
    return lookup_seconds(tower.positions * sharers, learns, rates)


def _attention_flops(config: Config, stage: str) -> float:
    """Model FLOPs of the decoder's attention over rows of one segment."""
    shape, pack = config.model.decoder, config.pack(stage)
    pairs = visible_pairs(((pack.row_length,),), True) * config.stages[stage].batch_rows
    return 12.0 * shape.num_heads * shape.head_dim * shape.num_layers * pairs

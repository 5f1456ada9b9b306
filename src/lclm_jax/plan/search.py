"""Which mesh, rows per chip and remat policy train fastest: few are compiled, after all were ranked by formula."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from lclm_jax.config import Config, MeshConfig
from lclm_jax.model.flops import step_flops
from lclm_jax.plan.memory import estimate, parameter_counts
from lclm_jax.plan.plans import StagePlan, backend_of, mesh_sizes, plan_stage
from lclm_jax.plan.topologies import Topology

REMATS = ("full", "decoder_attention", "attention", "dots", "none")
ROWS = (1, 2, 4, 8)
TIE = 0.02
"""Guesses closer than this, relatively, are one: the plan that takes less memory comes first."""


def candidates(config: Config, stage: str, topology: Topology) -> list[Config]:
    """Configurations worth compiling, the most promising first.

    The rows of a step stay what they are: more rows per chip means fewer microbatches. What cannot fit by formula,
    which guesses low, is left out. Meshes differ little beside rows and remat, so that every rows and remat is tried on
    its best mesh before any on its second.
    """
    groups: dict[tuple[int, str], list[tuple[int, float, float, Config]]] = {}
    for mesh, rows, remat in itertools.product(meshes(config, topology), ROWS, REMATS):
        candidate = _changed(config, stage, mesh, rows, remat)
        if candidate is None:
            continue
        memory = estimate(candidate, stage, mesh_sizes(candidate, topology)).peak
        if memory <= topology.chip.hbm_bytes:
            seconds = guess_seconds(candidate, stage, topology)
            entry = (round(math.log(seconds) / TIE), memory, seconds, candidate)
            groups.setdefault((rows, remat), []).append(entry)
    if not groups:
        raise ValueError(
            f"by the formula nothing fits {topology.name}; take more chips, or chips with more memory, or a shorter row"
        )
    ordered = (enumerate(sorted(group, key=lambda entry: entry[:3])) for group in groups.values())
    found = [(rank, *entry) for group in ordered for rank, entry in group]
    return [candidate for *_, candidate in sorted(found, key=lambda entry: entry[:4])]


def meshes(config: Config, topology: Topology) -> list[MeshConfig]:
    """Meshes to try: parameters over all chips of a slice or over part of them, with and without tensor parallelism.

    Slow links carry the replica axis. The context axis stays as configured: it is for rows that fit no other way.
    """
    context, chips = max(1, config.mesh.context), topology.chips_per_slice
    model = config.model
    found: list[MeshConfig] = []
    for tensor in (1, 2, 4, 8):
        divides = chips % (tensor * context) == 0 and model.decoder.num_kv_heads % tensor == 0
        for copies in (1, 2, 4, 8):
            if not divides or chips % (tensor * context * copies):
                continue
            fsdp = chips // (tensor * context * copies)
            if (fsdp > 1 or copies == 1) and model.decoder.hidden_size % (fsdp * context) == 0:
                found.append(MeshConfig(replica=topology.slices * copies, fsdp=fsdp, context=context, tensor=tensor))
    return found


def guess_seconds(config: Config, stage: str, topology: Topology) -> float:
    """Step time by formula: executed FLOPs, and the wire of gathering weights and reducing gradients."""
    settings, sizes, chip = config.stages[stage], mesh_sizes(config, topology), topology.chip
    flops = step_flops(config.model, settings, config.pack(stage), backend_of(config, topology)).executed
    parameters = sum(parameter_counts(config.model).values()) / sizes["tensor"]
    n = sizes["fsdp"] * sizes["context"]
    # bfloat16 weights twice (forward, backward), gradients once, and among copies all of their part; per microbatch.
    copies = sizes["replica"]
    wire = parameters * 2 * (3 * (n - 1) / n + 2 / n * (copies - 1) / copies) * settings.microbatches
    rows = settings.batch_rows / (sizes["replica"] * sizes["fsdp"])
    if sizes["tensor"] > 1:  # every layer gathers and scatters its activations, forward, backward and again
        layer = rows * config.pack(stage).row_length * config.model.decoder.hidden_size * 2
        wire += 12 * config.model.decoder.num_layers * layer * (sizes["tensor"] - 1) / sizes["tensor"]
    links = 2 * chip.dimensions if all(topology.wrap) else max(chip.dimensions, 1)
    return flops / (topology.num_chips * chip.flops) + wire / (links * chip.link_bytes_per_s)


def search(
    found: Sequence[Config], stage: str, topology: Topology, say: Callable[[str], None], reuse: bool = True
) -> list[StagePlan]:
    """Compile ``found`` and rank: what fits by tokens/s, then what does not. ``say`` is told of the progress."""
    plans: list[StagePlan] = []
    for number, config in enumerate(found, 1):
        choice = f"{_shown(mesh_sizes(config, topology))}, {config.stages[stage].microbatches} microbatches"
        say(f"{number}/{len(found)}: {choice}, remat {config.model.remat}")
        plans.append(plan_stage(config, stage, topology, reuse))
    return ranked(plans)


def ranked(plans: Iterable[StagePlan]) -> list[StagePlan]:
    """Those that fit by tokens/s, the fastest first, then the others."""
    return sorted(plans, key=lambda plan: (not plan.fits, -(plan.tokens_per_s or 0.0)))


def _changed(config: Config, stage: str, mesh: MeshConfig, rows: int, remat: str) -> Config | None:
    """``config`` with ``rows`` rows a chip and microbatch on ``mesh``; None if the batch does not divide so."""
    settings = config.stages[stage]
    at_once = rows * mesh.replica * mesh.fsdp
    if settings.batch_rows % at_once:
        return None
    changed = settings.model_copy(update={"microbatches": settings.batch_rows // at_once})
    return config.model_copy(
        update={
            "mesh": mesh,
            "model": config.model.model_copy(update={"remat": remat}),
            "stages": {**config.stages, stage: changed},
        }
    )


def _shown(sizes: dict[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"

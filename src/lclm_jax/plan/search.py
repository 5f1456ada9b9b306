"""Which mesh, rows per chip and remat policy are expected to train fastest: few are compiled, all ranked by formula."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from lclm_jax.config.devices import MeshConfig
from lclm_jax.config.model import RematTensors, RematTowers
from lclm_jax.config.registry.remat_policies import REMAT_POLICIES
from lclm_jax.config.tree import Config
from lclm_jax.errors import LclmError
from lclm_jax.plan.analytic_cost import mesh_sizes
from lclm_jax.plan.expected.forecast import forecast
from lclm_jax.plan.expected.work import Segments
from lclm_jax.plan.memory import estimate
from lclm_jax.plan.plans import StagePlan, plan_stage, remat_shown, shown
from lclm_jax.plan.topologies import Topology

ROWS = (1, 2, 4, 8)
KEPT = ((), ("k", "v"), ("q", "k", "v"), ("q", "k", "v", "o"), ("q", "k", "v", "o", "gate"))
"""Products of the decoder's blocks to save beside what a policy saves that does not save all; narrow ones first."""
TIE = 0.02
"""Forecasts closer than this, relatively, are one: the plan that takes less memory comes first."""
SLACK = 0.1
"""A plan is passed over if it is expected to take longer than the best compiled one by more than this: about as far as
forecasts are off."""


def candidates(config: Config, stage: str, topology: Topology, segments: Segments | None = None) -> list[Config]:
    """Configurations worth compiling, by the time that each is expected to take on rows of ``segments``.

    The rows of a step stay what they are: more rows per chip means fewer microbatches. What cannot fit by formula,
    which guesses low, is left out. Meshes differ little beside rows and remat, so that every rows and remat is tried on
    its best mesh before any on its second.
    """
    groups: dict[tuple[int, str], list[tuple[int, float, float, Config]]] = {}
    for mesh, rows, (remat, kept) in itertools.product(meshes(config, topology), ROWS, _remat_choices()):
        candidate = _changed(config, stage, mesh, rows, (remat, kept))
        if candidate is None:
            continue
        memory = estimate(candidate, stage, mesh_sizes(candidate, topology)).peak
        if memory <= topology.chip.hbm_bytes:
            seconds = forecast(candidate, stage, topology, segments).step_s
            entry = (round(math.log(seconds) / TIE), memory, seconds, candidate)
            groups.setdefault((rows, remat), []).append(entry)
    if not groups:
        raise LclmError(
            f"by the formula nothing fits {topology.name}; take more chips, or chips with more memory, or a shorter row"
        )
    ordered = (enumerate(sorted(group, key=lambda entry: entry[:3])) for group in groups.values())
    found = [(rank, *entry) for group in ordered for rank, entry in group]
    return [candidate for *_, candidate in sorted(found, key=lambda entry: entry[:4])]


def meshes(config: Config, topology: Topology) -> list[MeshConfig]:
    """Meshes to try: parameters over all chips of a slice or over part of them, with and without tensor parallelism.

    Slow links carry the replica axis. The context axis stays as configured: it is for rows that fit no other way.
    """
    context, chips = max(1, config.mesh.context), topology.devices_per_slice
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


def search(
    found: Sequence[Config],
    stage: str,
    topology: Topology,
    say: Callable[[str], None],
    reuse: bool = True,
    segments: Segments | None = None,
) -> Iterator[StagePlan]:
    """Plans of ``found`` in its order, each when it is compiled; ``say`` is told what comes next.

    Passed over is what by formula is expected to take clearly longer (``SLACK``) than the best that fits so far.
    """
    best = math.inf
    for config in found:
        seconds, sizes = forecast(config, stage, topology, segments).step_s, mesh_sizes(config, topology)
        if seconds > best * (1 + SLACK):
            continue
        parts = config.stages[stage].microbatches
        peak = estimate(config, stage, sizes).peak / 1e9
        choice = f"{shown(sizes)}, {parts} microbatch{'es' if parts > 1 else ''}, remat {remat_shown(config)}"
        say(f"compiling {choice} (by formula {peak:.1f} GB, {seconds:.2f} s)")
        plan = plan_stage(config, stage, topology, reuse, segments=segments)
        if plan.fits:
            best = min(best, seconds)
        yield plan


def compiled_best(plans: Iterable[StagePlan], most: int) -> list[StagePlan]:
    """The first of ``plans`` with ``most`` compiled programs, ranked; what has no room fails in seconds and is free."""
    taken: list[StagePlan] = []
    for plan in plans:
        taken.append(plan)
        if sum(plan.program is not None for plan in taken) == most:
            break
    return ranked(taken)


def config_of(plan: StagePlan, found: Iterable[Config], topology: Topology) -> Config:
    """The configuration of ``found`` that ``plan`` is of."""
    choice = plan.choice
    wanted = (choice.mesh, choice.microbatches, choice.remat)
    return next(
        one
        for one in found
        if (mesh_sizes(one, topology), one.stages[plan.stage].microbatches, remat_shown(one)) == wanted
    )


def ranked(plans: Iterable[StagePlan]) -> list[StagePlan]:
    """Those that fit by expected tokens/s, the fastest first, then the others."""
    return sorted(plans, key=lambda plan: (not plan.fits, -(plan.expected_tokens_per_s or plan.tokens_per_s or 0.0)))


def _remat_choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(policy, products that the decoder keeps besides)."""
    for name, policy in REMAT_POLICIES.items():
        yield from ((name, kept) for kept in (((),) if policy.saves_dots else KEPT))


def _changed(
    config: Config, stage: str, mesh: MeshConfig, rows: int, remat: tuple[str, tuple[str, ...]]
) -> Config | None:
    """``config`` with ``rows`` rows a chip and microbatch on ``mesh``; None if the batch does not divide so."""
    policy, kept = remat
    tensors = RematTowers(decoder=RematTensors(device=kept))
    settings = config.stages[stage]
    at_once = rows * mesh.replica * mesh.fsdp
    if settings.batch_rows % at_once:
        return None
    changed = settings.model_copy(update={"microbatches": settings.batch_rows // at_once})
    return config.model_copy(
        update={
            "mesh": mesh,
            "model": config.model.model_copy(update={"remat": policy, "remat_tensors": tensors}),
            "stages": {**config.stages, stage: changed},
        }
    )

"""A plan: one stage of a configuration on one topology, what it costs and whether it fits."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from lclm_jax.config import Config
from lclm_jax.model.flops import ATTENTION, step_flops
from lclm_jax.plan import cache
from lclm_jax.plan.census import count
from lclm_jax.plan.compiled import CompiledStep, DoesNotFit, compile_step
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.kernels import Causality
from lclm_jax.plan.memory import estimate
from lclm_jax.plan.roofline import roofline, wire_by_axes
from lclm_jax.plan.topologies import Topology

_DAY = 86400.0


@dataclass(frozen=True)
class Choice:
    """What a plan is of: everything that changes the program, apart from the model's shape."""

    topology: str
    chips: int
    mesh: dict[str, int]
    rows_per_chip: float
    """Packed rows of one microbatch per chip."""
    microbatches: int
    remat: str


@dataclass(frozen=True)
class Program:
    """The compiled step on one device. Bytes are per device, FLOPs and bytes per step."""

    argument_bytes: float
    temporary_bytes: float
    peak_bytes: float
    executed_flops: float
    """Matrix products and kernels that the program runs."""
    hbm_bytes: float
    wire_bytes: dict[str, float]
    """Mesh axes -> bytes received from collectives along them."""
    unknown_kernels: tuple[str, ...]
    """Custom kernels whose FLOPs are not counted."""
    compute_s: float
    hbm_s: float
    network_s: float
    step_s: float
    bound: str
    compile_s: float


@dataclass(frozen=True)
class StagePlan:
    """One stage on one topology."""

    stage: str
    choice: Choice
    chip_bytes: float
    model_flops: float
    """Of a step, over all chips, by formula."""
    formula_flops: float
    """Executed by one chip in a step, by formula."""
    formula_peak_bytes: float
    tokens_per_step: int
    """Decoder positions."""
    steps: int
    peak_flops: float
    """Of all chips, a second."""
    program: Program | None
    """None: it does not fit."""
    why_not: str = ""
    """What the compiler said if it does not fit."""

    @property
    def fits(self) -> bool:
        """Whether the program runs within the chip's memory."""
        return self.program is not None and self.program.peak_bytes <= self.chip_bytes

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation at the roofline's time."""
        return None if self.program is None else self.model_flops / (self.program.step_s * self.peak_flops)

    @property
    def tokens_per_s(self) -> float | None:
        """Decoder positions a second at the roofline's time."""
        return None if self.program is None else self.tokens_per_step / self.program.step_s

    @property
    def days(self) -> float | None:
        """Of the whole stage at the roofline's time."""
        return None if self.program is None else self.program.step_s * self.steps / _DAY

    @property
    def chip_hours(self) -> float | None:
        """Of the whole stage at the roofline's time."""
        return None if self.days is None else self.days * 24 * self.choice.chips


@dataclass(frozen=True)
class Outcome:
    """What compiling gave; what is cached."""

    program: Program | None
    why_not: str = ""


def plan_stage(config: Config, stage: str, topology: Topology, reuse: bool = True) -> StagePlan:
    """Compile the train step of ``stage`` for ``topology`` and count it; raises ``ValueError`` as ``compile_step``.

    ``reuse``: take the result of an earlier call with the same program from the cache.
    """
    settings, pack = config.stages[stage], config.pack(stage)
    backend = backend_of(config, topology)
    flops = step_flops(config.model, settings, pack, backend)
    mesh = mesh_sizes(config, topology)
    plan = StagePlan(
        stage=stage,
        choice=Choice(
            topology.name,
            topology.num_chips,
            mesh,
            settings.batch_rows / settings.microbatches / topology.num_chips,
            settings.microbatches,
            config.model.remat,
        ),
        chip_bytes=topology.chip.hbm_bytes,
        model_flops=flops.model,
        formula_flops=flops.executed / topology.num_chips,
        formula_peak_bytes=estimate(config, stage, mesh).peak,
        tokens_per_step=settings.batch_rows * pack.row_length,
        steps=settings.steps,
        peak_flops=topology.num_chips * topology.chip.flops,
        program=None,
    )
    key = cache.key_of(config, stage, topology)
    outcome = _read_outcome(cache.load(key) if reuse else None)
    if outcome is None:
        outcome = _compile(config, stage, topology, backend)
        cache.store(key, outcome)
    return dataclasses.replace(plan, program=outcome.program, why_not=outcome.why_not)


def mesh_sizes(config: Config, topology: Topology) -> dict[str, int]:
    """Mesh axis -> size on ``topology``, with -1 filled in."""
    sizes = {axis: getattr(config.mesh, axis) for axis in ("replica", "fsdp", "context", "tensor")}
    given = 1
    for size in sizes.values():
        given *= size if size > 0 else 1
    return {axis: size if size > 0 else max(1, topology.num_chips // given) for axis, size in sizes.items()}


def backend_of(config: Config, topology: Topology) -> str:
    """The attention that the formula of FLOPs assumes on ``topology``."""
    if config.model.attention in ATTENTION:
        return config.model.attention
    return "splash" if topology.chip.dimensions else "chunked"


def as_json(plan: StagePlan) -> dict[str, Any]:
    """Everything about a plan, with what follows from it, for ``json.dump``."""
    derived = {name: getattr(plan, name) for name in ("fits", "mfu", "tokens_per_s", "days", "chip_hours")}
    return dataclasses.asdict(plan) | derived


def from_json(values: dict[str, Any]) -> StagePlan:
    """The plan that ``as_json`` wrote."""
    fields = {field.name: values[field.name] for field in dataclasses.fields(StagePlan)}
    return StagePlan(**(fields | {"choice": Choice(**fields["choice"]), "program": _read_program(fields["program"])}))


def _read_program(values: dict[str, Any] | None) -> Program | None:
    if values is None:
        return None
    return Program(**(values | {"unknown_kernels": tuple(values["unknown_kernels"])}))


def _read_outcome(values: dict[str, Any] | None) -> Outcome | None:
    return None if values is None else Outcome(_read_program(values["program"]), values["why_not"])


def _compile(config: Config, stage: str, topology: Topology, backend: str) -> Outcome:
    try:
        compiled = compile_step(config, stage, topology)
    except DoesNotFit as error:
        return Outcome(None, str(error))
    return Outcome(_program(config, compiled, backend))


def _program(config: Config, compiled: CompiledStep, backend: str) -> Program:
    scopes = ("decoder", "encoder") if config.model.mask == "causal" else ("decoder",)
    causality = Causality(scopes, ATTENTION[backend].block or 1)
    census = count(parse(compiled.text), len(compiled.wiring.devices), causality)
    times = roofline(census, compiled.wiring)
    return Program(
        argument_bytes=compiled.argument_bytes,
        temporary_bytes=compiled.temporary_bytes,
        peak_bytes=compiled.peak_bytes,
        executed_flops=census.flops,
        hbm_bytes=census.hbm_bytes,
        wire_bytes=wire_by_axes(census, compiled.wiring),
        unknown_kernels=census.unknown_kernels,
        compute_s=times.compute_s,
        hbm_s=times.hbm_s,
        network_s=times.network_s,
        step_s=times.step_s,
        bound=times.bound,
        compile_s=compiled.compile_s,
    )

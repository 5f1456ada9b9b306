"""A plan: one stage of a configuration on one topology, what it costs and whether it fits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.config.tree import Config
from lclm_jax.model.flops import step_flops
from lclm_jax.plan import cache
from lclm_jax.plan.analytic_cost import AnalyticCost, analytic_cost, backend_of, mesh_sizes
from lclm_jax.plan.cache import CompiledStep
from lclm_jax.plan.compiled import compile_step, lower_step
from lclm_jax.plan.expected.compiled import Operation, operations, refined
from lclm_jax.plan.expected.expected import Expected
from lclm_jax.plan.expected.forecast import forecast
from lclm_jax.plan.expected.work import Segments
from lclm_jax.plan.hlo import Program as HloProgram
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.kernels import Causality
from lclm_jax.plan.memory import MemoryEstimate, estimate
from lclm_jax.plan.program_cost import count
from lclm_jax.plan.roofline import Wiring, collective_bytes_by_axes, roofline
from lclm_jax.plan.topologies import Topology, can_compile
from lclm_jax.types import JsonObject

_DAY = 86400.0


_OPERATIONS = 100
"""Of a compiled step that a plan names."""


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
    """The step on one device, as compiled or by formula. Bytes are per device, FLOPs and bytes per step."""

    argument_bytes: float
    temporary_bytes: float
    peak_bytes: float
    executed_flops: float
    """Matrix products and kernels that the program runs."""
    hbm_bytes: float | None
    """Memory traffic; None: there is no formula for it."""
    wire_bytes: dict[str, float]
    """Mesh axes -> bytes received from collectives along them."""
    unknown_kernels: tuple[str, ...]
    """Custom kernels whose FLOPs are not counted."""
    compute_s: float
    hbm_s: float
    network_s: float
    step_s: float
    bound: str
    compile_s: float | None
    """None: it was not compiled, everything is by formula."""
    collectives: float | None = None
    """Collectives that run; None: there is no formula for them."""


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
    expected: Expected | None = None
    """How long the step will take, where the program and the properties below say how long it takes at least."""
    operations: tuple[Operation, ...] = ()
    """Of a program compiled for TPUs: what its products and elementwise work consist of, the longest first."""

    @property
    def fits(self) -> bool:
        """Whether the program runs within the chip's memory."""
        return self.program is not None and self.program.peak_bytes <= self.chip_bytes

    @property
    def by_formula(self) -> bool:
        """Whether nothing was compiled."""
        return self.program is not None and self.program.compile_s is None

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

    @property
    def expected_mfu(self) -> float | None:
        """Model FLOPs utilisation at the expected time, of rows that count as full like that at the roofline's."""
        return None if self.expected is None else self.model_flops / (self.expected.step_s * self.peak_flops)

    @property
    def expected_visible_mfu(self) -> float | None:
        """The same without attention between segments, which the model does not need."""
        return None if self.expected is None else self.expected.visible_flops / (self.expected.step_s * self.peak_flops)

    @property
    def expected_tokens_per_s(self) -> float | None:
        """Decoder positions a second at the expected time."""
        return None if self.expected is None else self.tokens_per_step / self.expected.step_s

    @property
    def expected_days(self) -> float | None:
        """Of the whole stage at the expected time."""
        return None if self.expected is None else self.expected.step_s * self.steps / _DAY

    @property
    def expected_chip_hours(self) -> float | None:
        """Of the whole stage at the expected time."""
        return None if self.expected_days is None else self.expected_days * 24 * self.choice.chips


def plan_stage(
    config: Config,
    stage: str,
    topology: Topology,
    reuse: bool = True,
    compiled: bool = True,
    segments: Segments | None = None,
    flags: Mapping[str, str | bool] = MappingProxyType({}),
) -> StagePlan:
    """Compile the train step of ``stage`` for ``topology`` and count it; raises ``LclmError`` as ``lower_step``.

    ``reuse``: take the result of an earlier call with the same program from the cache. Without ``compiled``, and where
    the compiler of GPUs is not installed, the plan is by formula (``Program.compile_s`` is None). ``segments``: of some
    rows, for the expected time; None: one segment a row. ``flags``: of the compiler, beside those of the environment.
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
            settings.batch_rows / settings.microbatches / topology.num_devices,
            settings.microbatches,
            remat_shown(config),
        ),
        chip_bytes=topology.chip.hbm_bytes,
        model_flops=flops.model,
        formula_flops=flops.executed / topology.num_devices,
        formula_peak_bytes=estimate(config, stage, mesh).peak,
        tokens_per_step=settings.batch_rows * pack.row_length,
        steps=settings.steps,
        peak_flops=topology.num_devices * topology.chip.flops,
        program=None,
        expected=forecast(config, stage, topology, segments),
    )
    if not compiled or not can_compile(topology):
        guess = _program_by_formula(analytic_cost(config, stage, topology), estimate(config, stage, mesh))
        return dataclasses.replace(plan, program=guess)
    lowered = lower_step(config, stage, topology)
    key = cache.key_of(lowered, flags)
    step = cache.load(key) if reuse else None
    if step is None:
        step = compile_step(lowered, flags)
        cache.store(key, step)
    if step.why_not:
        return dataclasses.replace(plan, why_not=step.why_not)
    text = parse(step.text)
    program = _program(config, step, text, lowered.wiring, backend)
    assert plan.expected is not None
    expected = refined(plan.expected, text, program.network_s, topology.chip)
    longest = operations(text, topology.chip)[:_OPERATIONS]
    return dataclasses.replace(plan, program=program, expected=expected, operations=longest)


def shown(mesh: dict[str, int]) -> str:
    """The axes of ``mesh`` that are larger than one, for people."""
    return " ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"


def remat_shown(config: Config) -> str:
    """The remat policy, and the products that are kept or moved to the host besides, for people."""
    found = config.model.remat
    for tower in ("decoder", "encoder"):
        for place in ("device", "host"):
            products = getattr(getattr(config.model.remat_tensors, tower), place)
            found += f" + {tower} {' '.join(products)}{' on the host' * (place == 'host')}" if products else ""
    return found


def as_json(plan: StagePlan) -> JsonObject:
    """Everything about a plan, with what follows from it, for ``json.dump``."""
    rates = ("mfu", "tokens_per_s", "days", "chip_hours")
    derived = {name: getattr(plan, name) for name in ("fits", "by_formula", *rates)}
    expected = None
    if plan.expected is not None:
        expected = dataclasses.asdict(plan.expected) | {"step_s": plan.expected.step_s}
        expected |= {name: getattr(plan, f"expected_{name}") for name in ("visible_mfu", *rates)}
    return dataclasses.asdict(plan) | derived | {"expected": expected}


def _program(config: Config, compiled: CompiledStep, text: HloProgram, wiring: Wiring, backend: str) -> Program:
    scopes = ("decoder", "encoder") if config.model.mask == "causal" else ("decoder",)
    causality = Causality(scopes, ATTENTION_BACKENDS[backend].cost.block or 1)
    cost = count(text, len(wiring.devices), causality)
    times = roofline(cost, wiring)
    return Program(
        argument_bytes=compiled.argument_bytes,
        temporary_bytes=compiled.temporary_bytes,
        peak_bytes=compiled.peak_bytes,
        executed_flops=cost.flops,
        hbm_bytes=cost.hbm_bytes,
        wire_bytes=collective_bytes_by_axes(cost, wiring),
        unknown_kernels=cost.unknown_kernels,
        compute_s=times.compute_s,
        hbm_s=times.hbm_s,
        network_s=times.network_s,
        step_s=times.step_s,
        bound=times.bound,
        compile_s=compiled.compile_s,
        collectives=sum(one.times for one in cost.collectives),
    )


def _program_by_formula(found: AnalyticCost, memory: MemoryEstimate) -> Program:
    bound = "compute" if found.compute_s >= found.network_s else "network"
    return Program(
        argument_bytes=memory.arguments,
        temporary_bytes=memory.peak - memory.arguments,
        peak_bytes=memory.peak,
        executed_flops=found.flops,
        hbm_bytes=None,
        wire_bytes=found.collective_bytes,
        unknown_kernels=(),
        compute_s=found.compute_s,
        hbm_s=0.0,
        network_s=found.network_s,
        step_s=found.step_s,
        bound=bound,
        compile_s=None,
    )

"""Plans as tables, and as one JSON document."""

import math
from collections.abc import Sequence
from importlib.metadata import version

from rich.markup import escape
from rich.table import Table

from lclm_jax.plan.expected.published import Calibration
from lclm_jax.plan.flags import Effect
from lclm_jax.plan.memory import MemoryEstimate
from lclm_jax.plan.plans import StagePlan, as_json, shown
from lclm_jax.plan.topologies import compiler_packages, parse_topology
from lclm_jax.types import JsonObject


def stages_table(plans: Sequence[StagePlan], price: float | None) -> Table:
    """One column per stage, one line per figure."""
    choice = plans[0].choice
    title = f"{choice.topology}: {choice.chips} chips, {shown(choice.mesh)}, remat {choice.remat}"
    if any(plan.by_formula for plan in plans):
        packages = escape(compiler_packages(parse_topology(choice.topology)))
        title += f"\nBY FORMULA, NOT COMPILED; compiling needs {packages}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    columns = [dict(lines(plan, price)) for plan in plans]
    for plan in plans:
        table.add_column(plan.stage, justify="right")
    names = list(dict.fromkeys(name for column in columns for name in column))
    for name in names:
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def search_table(plans: Sequence[StagePlan]) -> Table:
    """One line per plan, in the order given."""
    table = Table(title=f"stage {plans[0].stage}, {plans[0].choice.topology}", title_justify="left")
    for name in (
        "mesh",
        "rows a chip",
        "remat",
        "peak GB",
        "wire GB",
        "step s",
        "bound",
        "expected s",
        "tokens/s",
        "MFU %",
    ):
        table.add_column(name, justify="left" if name in ("mesh", "remat", "bound") else "right")
    for plan in plans:
        start = (shown(plan.choice.mesh), f"{plan.choice.rows_per_chip:g}", plan.choice.remat)
        program = plan.program
        if program is None or not plan.fits:
            table.add_row(*start, "too much" if program is None else _gb(program.peak_bytes))
            continue
        wire = _gb(sum(program.wire_bytes.values()))
        figures = (_gb(program.peak_bytes), wire, f"{program.step_s:.2f}", program.bound)
        if plan.expected is None:
            rates = ("", plan.tokens_per_s, plan.mfu)
        else:
            rates = (f"{plan.expected.step_s:.2f}", plan.expected_tokens_per_s, plan.expected_mfu)
        table.add_row(*start, *figures, rates[0], f"{rates[1]:,.0f}", f"{100 * (rates[2] or 0):.1f}")
    return table


def flags_table(found: Sequence[Effect]) -> Table:
    """One line per set of flags, beside the first, which has none of its own."""
    first = found[0].plan
    title = "" if first is None else f"flags of the compiler, stage {first.stage}, {first.choice.topology}"
    table = Table(title=title, title_justify="left")
    for name in ("flags", "expected s", "change", "peak GB", "collectives", "wire GB", "step s at least"):
        table.add_column(name, justify="left" if name == "flags" else "right")
    base = None if first is None or first.expected is None else first.expected.step_s
    for effect in found:
        name, plan = "as they are" if effect.flags is None else f"+ {effect.flags.name}", effect.plan
        if plan is None or plan.program is None or plan.expected is None:
            table.add_row(name, "refused" if plan is None else "does not fit")
            continue
        seconds, program = plan.expected.step_s, plan.program
        change = "" if effect.flags is None or base is None else f"{100 * (seconds / base - 1):+.1f} %"
        wire = _gb(sum(program.wire_bytes.values()))
        runs = "" if program.collectives is None else f"{program.collectives:,.0f}"
        least = f"{program.step_s:#.4g}"
        table.add_row(name, f"{seconds:#.4g}", change, _gb(program.peak_bytes), runs, wire, least)
    return table


def operations_table(plan: StagePlan, most: int) -> Table:
    """The longest operations of a program compiled for TPUs."""
    seconds = 0.0 if plan.expected is None else plan.expected.step_s
    title = f"longest operations by the compiler's estimate, {plan.stage}, {plan.choice.topology}"
    table = Table(title=title, title_justify="left")
    table.add_column("operation", overflow="fold")
    table.add_column("kind")
    table.add_column("result", overflow="fold")
    for name in ("runs", "ms", "of the step"):
        table.add_column(name, justify="right")
    for one in plan.operations[:most]:
        share = f"{100 * one.seconds / seconds:.1f} %" if seconds else ""
        table.add_row(one.place, one.kind, one.result, f"{one.runs:,.0f}", f"{1e3 * one.seconds:.1f}", share)
    return table


def flags_document(found: Sequence[Effect]) -> list[JsonObject]:
    """Name, flags, source and plan of each, for ``json.dump``; what was refused with the compiler's words."""
    return [
        {
            "name": None if one.flags is None else one.flags.name,
            "flags": {} if one.flags is None else dict(one.flags.flags),
            "source": None if one.flags is None else one.flags.source,
            "plan": None if one.plan is None else as_json(one.plan),
            "refused": one.refused or None,
        }
        for one in found
    ]


def lines(plan: StagePlan, price: float | None) -> list[tuple[str, str]]:
    """(name, figure) of a plan; ``price`` is that of a chip-hour."""
    found = [
        ("rows a chip and microbatch", f"{plan.choice.rows_per_chip:g}"),
        ("decoder tokens a step", f"{plan.tokens_per_step:,}"),
    ]
    program = plan.program
    if program is None:
        return [
            *found,
            ("fits", f"no, {_gb(plan.chip_bytes)} GB a chip are too little"),
            ("GB a chip: peak by formula", _gb(plan.formula_peak_bytes)),
        ]
    found += [
        ("fits", f"{'yes' if plan.fits else 'no'}, {_gb(program.peak_bytes)} of {_gb(plan.chip_bytes)} GB"),
        ("GB a chip: arguments", _gb(program.argument_bytes)),
        ("GB a chip: temporaries", _gb(program.temporary_bytes)),
        ("GB a chip: peak", _gb(program.peak_bytes)),
        ("GB a chip: peak by formula", _gb(plan.formula_peak_bytes)),
        ("TFLOP a chip: model", f"{plan.model_flops / math.prod(plan.choice.mesh.values()) / 1e12:.1f}"),
        ("TFLOP a chip: executed", f"{program.executed_flops / 1e12:.1f}"),
        ("TFLOP a chip: executed, by formula", f"{plan.formula_flops / 1e12:.1f}"),
    ]
    if program.hbm_bytes is not None:
        found += [("GB a chip: memory traffic", _gb(program.hbm_bytes)), ("s: HBM", f"{program.hbm_s:.3f}")]
    found += [(f"GB a chip: wire, {axes}", _gb(bytes_)) for axes, bytes_ in program.wire_bytes.items()]
    found += [
        ("s: compute", f"{program.compute_s:.3f}"),
        ("s: network", f"{program.network_s:.3f}"),
        ("s: step at least", f"{program.step_s:.3f}, bound by {program.bound}"),
        ("tokens/s at most", f"{plan.tokens_per_s:,.0f}"),
        ("MFU at most", f"{100 * (plan.mfu or 0):.1f} %"),
        ("steps", f"{plan.steps:,}"),
        ("days at least", f"{plan.days:.2f}"),
        ("chip-hours at least", f"{plan.chip_hours:,.0f}"),
    ]
    if price is not None:
        found.append(("price at least", f"{price * (plan.chip_hours or 0):,.0f}"))
    found += _expected(plan, price)
    if program.unknown_kernels:
        found.append(("kernels not counted", ", ".join(program.unknown_kernels)))
    return [*found, *([] if program.compile_s is None else [("s: compiling", f"{program.compile_s:.0f}")])]


def _expected(plan: StagePlan, price: float | None) -> list[tuple[str, str]]:
    """(name, figure) of what is expected of a plan, beside what it takes at least."""
    expected = plan.expected
    if expected is None:
        return []
    found = [
        (
            "segments a row",
            f"{expected.segments_per_row:.1f}, {100 * expected.visible_share:.0f} % of the pairs visible",
        ),
        ("expected s: products", f"{expected.products_s:.3f}"),
        ("expected s: kernels", f"{expected.kernels_s:.3f}"),
        ("expected s: elementwise", f"{expected.elementwise_s:.3f}"),
        ("expected s: lookups, optimizer", f"{expected.rows_s + expected.optimizer_s:.3f}"),
        ("expected s: network", f"{expected.network_s:.3f}"),
        ("expected s: step", f"{expected.step_s:.3f}{', by the compiler' if expected.compiled else ', by formula'}"),
        ("expected tokens/s", f"{plan.expected_tokens_per_s:,.0f}"),
        ("expected MFU", f"{100 * (plan.expected_mfu or 0):.1f} %"),
        ("expected MFU of visible work", f"{100 * (plan.expected_visible_mfu or 0):.1f} %"),
        ("expected days", f"{plan.expected_days:.2f}"),
        ("expected chip-hours", f"{plan.expected_chip_hours:,.0f}"),
    ]
    if price is not None:
        found.append(("expected price", f"{price * (plan.expected_chip_hours or 0):,.0f}"))
    if expected.assumed_from:
        found.append(("rates not timed on this chip", f"those of {expected.assumed_from}, by peak"))
    return found


def calibration_table(found: Sequence[Calibration]) -> Table:
    """Published steps beside the forecast, one line each."""
    table = Table(title="published steps and what is expected of them, by formula", title_justify="left")
    for name in ("step", "topology", "rows x length", "published s", "expected s", "error %", "held out"):
        table.add_column(name, justify="left" if name in ("step", "topology", "held out") else "right")
    for one in found:
        step = one.step
        table.add_row(
            step.name,
            step.topology,
            f"{step.rows} x {step.length:,}",
            f"{step.seconds:.3f}",
            f"{one.expected_seconds:.3f}",
            f"{100 * one.error:+.1f}",
            "yes" if step.held_out else "",
        )
    return table


def memory_table(estimate: MemoryEstimate, stage: str, mesh: dict[str, int], capacity: int | None) -> Table:
    """What a step of ``stage`` holds on a device of ``mesh``, by formula, beside its ``capacity`` in bytes if known."""
    table = Table(title=f"stage {stage} on {shown(mesh)}, by formula", title_justify="left")
    table.add_column("")
    table.add_column("GB a device", justify="right")
    for name, count in (
        ("parameters, moments, batch", estimate.arguments),
        ("gradients", estimate.gradients),
        ("activations kept for the backward pass", estimate.saved),
        ("one layer's backward pass, or the cross-entropy", estimate.working),
        ("peak", estimate.peak),
    ):
        table.add_row(name, _gb(count))
    if capacity is not None:
        table.add_row("the device has", _gb(capacity))
    return table


def totals(plans: Sequence[StagePlan], price: float | None) -> dict[str, float | None]:
    """Days, chip-hours and price of all stages, at least and as expected; None where a stage does not fit."""
    complete = all(plan.fits for plan in plans)

    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if complete and len(known) == len(plans) else None

    found: dict[str, float | None] = {}
    for prefix in ("", "expected_"):
        hours = total([getattr(plan, f"{prefix}chip_hours") for plan in plans])
        found[f"{prefix}days"] = total([getattr(plan, f"{prefix}days") for plan in plans])
        found[f"{prefix}chip_hours"] = hours
        found[f"{prefix}price"] = None if hours is None or price is None else hours * price
    return found


def calibration_document(found: Sequence[Calibration]) -> JsonObject:
    """Everything of a calibration, for ``--json``."""
    return {"steps": [one.as_json() for one in found]}


def document(plans: Sequence[StagePlan], price: float | None) -> JsonObject:
    """Everything, for ``--json``."""
    return {
        "plans": [as_json(plan) for plan in plans],
        "total": totals(plans, price),
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
    }


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}"

"""``lclm plan``: what a run costs on hardware that need not be there."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lclm_jax.cli.options import (
    Place,
    cluster_option,
    json_option,
    load_for_devices,
    set_option,
    write_result,
)
from lclm_jax.config import Config, StageConfig

if TYPE_CHECKING:
    from rich.console import Console

    from lclm_jax.plan.expected.work import Segments
    from lclm_jax.plan.plans import StagePlan
    from lclm_jax.plan.topologies import Topology
    from lclm_jax.types import JsonObject


@click.command()
@click.argument("config", type=Place(), required=False)
@click.option("--topology", "name", help="v5p:4x4x4, v5p-128, v5e-256, 2xv6e-256, h100:8, h100:8x8...")
@click.option("--stage", help="Plan this stage alone; default: all stages.")
@click.option(
    "--rows-per-chip",
    type=click.FloatRange(min=0, min_open=True),
    help="Packed rows per chip and step; below 1 where chips share a row. The tokens of a stage stay the same.",
)
@click.option("--price", type=click.FloatRange(min=0), help="Price of a chip-hour, in any currency.")
@click.option(
    "--search",
    is_flag=True,
    help="Search meshes, rows per chip and remat policies for one stage (default: the last); rank those that fit.",
)
@click.option(
    "--compiles",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many of the best plans by formula --search compiles at most.",
)
@click.option(
    "--flags",
    is_flag=True,
    help="Compile one stage (default: the last), with --search its best plan, again with each of the compiler's flags"
    " that are known to matter on these chips; show what each changes.",
)
@click.option(
    "--operations",
    type=click.IntRange(min=1),
    help="Also list this many of the compiled step's operations, the longest by the TPU compiler's estimate; attention"
    " kernels and collectives, of which it has none, are left out.",
)
@click.option("--fresh", is_flag=True, help="Compile again even if the result is cached.")
@click.option("--formula", is_flag=True, help="Compile nothing: everything by formula, in seconds.")
@click.option("--full-rows", is_flag=True, help="Expect rows of one segment each, not the stage's own segments.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Print what is expected of steps that others published, beside what they took; needs no CONFIG.",
)
@set_option
@cluster_option
@json_option
def plan(
    config: Path | None,
    name: str | None,
    stage: str | None,
    rows_per_chip: float | None,
    overrides: tuple[str, ...],
    **options,
) -> None:
    """Compile the real train step of CONFIG for TPU slices or H100s, on this machine, and analyse the program.

    Prints whether it fits, memory and FLOPs per chip, bytes sent per mesh axis, the step time at peak rates and its
    bottleneck, and from these tokens/s, MFU, days, chip-hours and price. These times are lower bounds, as no program
    runs at peak; beside them stands the time that is expected at rates that were measured on real chips, of rows with
    the segments that the stage's mixture gives. Needs no accelerator. TPUs need libtpu (pip install "lclm-jax[tpu]"),
    GPUs jax-cuda13-plugin, jax-cuda13-pjrt and nvidia-cuda-nvcc; without these a plan is by formula and says so. A
    compile takes minutes; results are kept under ~/.cache/lclm-jax/plans.
    """
    if options["calibrate"]:
        _calibrate(options["json_file"])
        return
    if config is None or name is None:
        raise click.UsageError("give CONFIG and --topology, or --calibrate alone")
    from lclm_jax.plan.topologies import can_compile, compiler_packages, parse_topology, prepare_environment

    tree = load_for_devices(config, overrides, options["cluster"])
    topology = parse_topology(name)
    prepare_environment()
    if stage is not None and stage not in tree.stages:
        raise click.BadParameter(f"{stage!r} is not a stage of {config}; its stages are {', '.join(tree.stages)}")
    stages = [stage] if stage else list(tree.stages)
    if rows_per_chip is not None:
        tree = with_rows(tree, max(1, round(rows_per_chip * topology.num_devices)))
    one = stages[-1] if stage is None else stage
    if options["flags"] and (options["formula"] or not can_compile(topology)):
        raise click.UsageError(f"--flags compiles: leave --formula out, and install {compiler_packages(topology)}")
    if options["search"]:
        _search(tree, one, topology, options)
    elif options["flags"]:
        write_result(options["json_file"], {"flags": _flags(tree, one, topology, options)})
    else:
        _plan(tree, stages, topology, options)


def _calibrate(json_file: Path | None) -> None:
    from lclm_jax.plan.expected.published import calibrate
    from lclm_jax.report.plan_tables import calibration_document, calibration_table

    found = calibrate()
    _console(json_file).print(calibration_table(found))
    write_result(json_file, calibration_document(found))


def _segments(tree: Config, stage: str, full_rows: bool) -> "Segments | None":
    """Of some rows of ``stage`` as its mixture packs them, over simulated documents; None: one segment a row."""
    from lclm_jax.bench.simulated.corpus import simulated_rows
    from lclm_jax.errors import LclmError

    if full_rows:
        return None
    try:
        return simulated_rows(tree, stage)
    except LclmError as error:
        click.echo(f"rows count as one segment each: {error}", err=True)
        return None


def _plan(tree: Config, stages: list[str], topology: "Topology", options: dict) -> None:
    from lclm_jax.plan.plans import plan_stage
    from lclm_jax.report.plan_tables import document, stages_table, totals
    from lclm_jax.train.supervise.out_of_memory import advice

    plans = []
    for name in stages:
        if not options["formula"]:
            click.echo(f"planning {name} for {topology.name}: takes minutes unless the result is cached", err=True)
        segments = _segments(tree, name, options["full_rows"])
        plans.append(plan_stage(tree, name, topology, not options["fresh"], not options["formula"], segments))
    price = options["price"]
    console = _console(options["json_file"])
    console.print(stages_table(plans, price))
    if options["operations"]:
        _operations(plans, options["operations"], console)
    for planned in plans:
        if not planned.fits:
            click.echo(
                f"{planned.stage} does not fit {topology.name}. {advice(tree, planned.stage, planned.choice.mesh)}\n"
                "or use chips with more memory, or fewer --rows-per-chip; --search finds the fastest plan that fits"
            )
    total = totals(plans, price)
    if len(plans) > 1 and total["days"] is not None:
        price_text = "" if total["price"] is None else f", price about {total['price']:,.0f}"
        console.print(f"in total at least {total['days']:.2f} days, {total['chip_hours']:,.0f} chip-hours{price_text}")
    if len(plans) > 1 and total["expected_days"] is not None:
        price_text = "" if total["expected_price"] is None else f", price about {total['expected_price']:,.0f}"
        hours = f"{total['expected_chip_hours']:,.0f} chip-hours"
        console.print(f"in total {total['expected_days']:.2f} days are expected, {hours}{price_text}")
    write_result(options["json_file"], document(plans, price))


def _operations(plans: "list[StagePlan]", most: int, console: "Console") -> None:
    from lclm_jax.report.plan_tables import operations_table

    for planned in plans:
        if planned.operations:
            console.print(operations_table(planned, most))
        else:
            click.echo(f"{planned.stage}: nothing was compiled for TPUs, so there are no operations to list", err=True)


def _search(tree: Config, stage: str, topology: "Topology", options: dict) -> None:
    from lclm_jax.plan.search import candidates, compiled_best, config_of, search
    from lclm_jax.report.plan_tables import document, search_table

    segments = _segments(tree, stage, options["full_rows"])
    found, most = candidates(tree, stage, topology, segments), options["compiles"]
    click.echo(
        f"{len(found)} meshes, rows and remat policies fit by formula and are ranked by expected time; the best are"
        f" compiled, at most {most}. Ctrl-C keeps finished plans; rerun the same command to resume",
        err=True,
    )
    reuse = not options["fresh"]
    tried = search(found, stage, topology, lambda text: click.echo(text, err=True), reuse, segments)
    plans = compiled_best(tried, most)
    _console(options["json_file"]).print(search_table(plans))
    result = document(plans, options["price"])
    if options["flags"]:
        result |= {"flags": _flags(config_of(plans[0], found, topology), stage, topology, options)}
    write_result(options["json_file"], result)


def _flags(tree: Config, stage: str, topology: "Topology", options: dict) -> "list[JsonObject]":
    """Print what each set of flags changes of ``tree``, and return it for JSON."""
    from lclm_jax.plan.flags import effects
    from lclm_jax.report.plan_tables import flags_document, flags_table

    segments = _segments(tree, stage, options["full_rows"])
    found = list(
        effects(tree, stage, topology, lambda text: click.echo(text, err=True), not options["fresh"], segments)
    )
    _console(options["json_file"]).print(flags_table(found))
    for effect in found:
        if effect.flags is not None and effect.refused:
            click.echo(f"{effect.flags.name}: refused: {effect.refused}", err=True)
    return flags_document(found)


def _console(json_file: Path | None) -> "Console":
    """Standard output, or that of errors if JSON goes there; wide enough for the tables if it is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if json_file is not None and str(json_file) == "-" else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160)


def with_rows(tree: Config, rows: int) -> Config:
    """``tree`` with ``rows`` packed rows a step in every stage, in one microbatch; stages keep their tokens."""

    def changed(stage: StageConfig) -> StageConfig:
        steps = max(1, round(stage.steps * stage.batch_rows / rows))
        return stage.model_copy(update={"batch_rows": rows, "microbatches": 1, "steps": steps})

    return tree.model_copy(update={"stages": {name: changed(stage) for name, stage in tree.stages.items()}})

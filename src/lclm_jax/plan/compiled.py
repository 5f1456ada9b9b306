"""The real train step, compiled for a topology that is not there."""

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import jax

from lclm_jax.batch import Batch, batch_shapes, teacher_shapes
from lclm_jax.config.tree import Config
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import batch_sharding, make_mesh, use_mesh
from lclm_jax.plan.cache import CompiledStep, LoweredStep
from lclm_jax.plan.roofline import Wiring
from lclm_jax.plan.topologies import Topology, compile_only_devices
from lclm_jax.train.core.initial_state import abstract_state, params_shardings
from lclm_jax.train.core.loss import teacher_model
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.step import make_train_step
from lclm_jax.types import Params

MEMORY_TOKENS = (0, 1, 2)
"""Stand in for ids that only the tokenizer knows; no cost depends on them."""

_RATES = {"adapter": 6e-5, "encoder": 6e-5, "decoder": 1e-5}
"""Stand in for the learning rates of all stages."""

_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}
"""XLA times variants of a product on the GPU itself; there is none."""


def lower_step(config: Config, stage: str, topology: Topology) -> LoweredStep:
    """The train step of ``stage`` on ``config.mesh`` over the devices of ``topology``, for the compiler.

    Only shapes go in, so nothing is allocated, whatever the size of the model.

    Raises:
        LclmError: the mesh, the rows or the heads do not divide, or the topology is unknown to the compiler.
    """
    config = _with_plain_numbers(config, stage)
    mesh = make_mesh(config.mesh, compile_only_devices(topology))
    optimizer = make_optimizer(config.train.optimizer, config.stages[stage], abstract_params(config.model))
    with use_mesh(mesh), _without_traces():
        state = abstract_state(config.model, optimizer, mesh)
        inputs = (state, _abstract_batch(config, stage, mesh), *_abstract_teacher(config, stage, mesh))
        lowered = make_train_step(config, stage, optimizer, mesh).lower(*inputs)
    return LoweredStep(lowered, Wiring(topology, dict(mesh.shape), list(mesh.devices.flat)))


def compile_step(lowered: LoweredStep, flags: Mapping[str, str | bool] = MappingProxyType({})) -> CompiledStep:
    """Compile; a program too large for the chip's memory gives a ``CompiledStep`` that says so.

    ``flags``: of the compiler, beside those of the environment.
    """
    started = time.perf_counter()
    options = {**(_OPTIONS if lowered.wiring.on_gpus else {}), **flags}
    try:
        program = lowered.program.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error):
            raise
        return CompiledStep("", 0.0, 0.0, 0.0, time.perf_counter() - started, str(error).splitlines()[0])
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None
    assert text is not None
    return CompiledStep(
        text,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        time.perf_counter() - started,
    )


def _with_plain_numbers(config: Config, stage: str) -> Config:
    """``config`` with one schedule for all stages: numbers in the program that none of its costs depends on.

    Stages that train the same parts so share one program, which is compiled once.
    """
    found = config.stages[stage]
    rates = {part: _RATES.get(part, 1e-5) for part, rate in found.lr if rate is not None}
    plain = {"steps": 1000, "warmup_steps": None, "min_lr": 1e-6, "lr": found.lr.model_copy(update=rates)}
    settings = found.model_copy(update=plain)
    changes: dict[str, object] = {"stages": {**config.stages, stage: settings}}
    if config.model.memory_token_ids is None:
        changes["model"] = config.model.model_copy(update={"memory_token_ids": MEMORY_TOKENS})
    return config.model_copy(update=changes)


@contextmanager
def _without_traces() -> Iterator[None]:
    """Leave lines of files out of programs: a kernel carries those it came from, and would differ when they move."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _abstract_batch(config: Config, stage: str, mesh: jax.sharding.Mesh) -> Batch:
    settings = config.stages[stage]
    teacher = teacher_shapes(settings.batch_rows, *config.teacher_sizes(stage))
    shapes = batch_shapes(config.model, config.pack(stage), settings.batch_rows) | teacher
    places = batch_sharding(
        mesh, markers="marker_index" in shapes, teacher=teacher, span_ratios="latent_ratios" in shapes
    )
    return Batch(
        **{
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=getattr(places, name))
            for name, (shape, dtype) in shapes.items()
        }
    )


def _abstract_teacher(config: Config, stage: str, mesh: jax.sharding.Mesh) -> tuple[Params, ...]:
    """The decoder that a step takes beside the model's own; nothing where it takes none."""
    settings = config.stages[stage]
    if settings.distill is None or not settings.teacher_copied:
        return ()
    model = teacher_model(config.model, settings.distill)
    shapes, places = abstract_params(model)["decoder"], params_shardings(model, mesh)["decoder"]
    place = functools.partial(jax.tree.map, lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at))
    return (place(shapes, places),)

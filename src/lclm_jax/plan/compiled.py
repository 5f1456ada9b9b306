"""The real train step, compiled for a topology that is not there."""

import time
from typing import Any, NamedTuple

import jax

from lclm_jax.batch import Batch, batch_shapes
from lclm_jax.config import Config
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import batch_sharding, make_mesh, use_mesh
from lclm_jax.plan.roofline import Wiring
from lclm_jax.plan.topologies import Topology
from lclm_jax.train.optimizer import make_optimizer
from lclm_jax.train.state import abstract_state
from lclm_jax.train.step import make_train_step

MEMORY_TOKENS = (0, 1, 2)
"""Stand in for ids that only the tokenizer knows; no cost depends on them."""


class CompiledStep(NamedTuple):
    """A compiled program and what the compiler says of its memory; bytes are per device."""

    text: str
    """Optimised HLO."""
    argument_bytes: float
    temporary_bytes: float
    peak_bytes: float
    compile_s: float
    """Seconds of lowering and compiling together."""
    wiring: Wiring


class DoesNotFit(ValueError):
    """The compiler found no way to place the program in the chip's memory."""


def compile_step(config: Config, stage: str, topology: Topology) -> CompiledStep:
    """Compile the train step of ``stage`` on ``config.mesh`` over the devices of ``topology``.

    Only shapes go in, so nothing is allocated, whatever the size of the model.

    Raises:
        DoesNotFit: the compiler ran out of the chip's memory.
        ValueError: the mesh, the rows or the heads do not divide, or the topology is unknown to the compiler.
    """
    if config.model.memory_token_ids is None:
        model = config.model.model_copy(update={"memory_token_ids": MEMORY_TOKENS})
        config = config.model_copy(update={"model": model})
    mesh = make_mesh(config.mesh, devices_of(topology))
    optimizer = make_optimizer(config.train.optimizer, config.stages[stage], abstract_params(config.model))
    started = time.perf_counter()
    with use_mesh(mesh):
        state = abstract_state(config.model, optimizer, mesh)
        lowered = make_train_step(config, stage, optimizer, mesh).lower(state, _abstract_batch(config, stage, mesh))
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error):
                raise
            raise DoesNotFit(str(error).splitlines()[0]) from None
    memory = program.memory_analysis()
    return CompiledStep(
        program.as_text(),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        time.perf_counter() - started,
        Wiring(topology, dict(mesh.shape), list(mesh.devices.flat)),
    )


def devices_of(topology: Topology) -> list[Any]:
    """Compile-only devices; raises ``ValueError`` for GPUs, for which there is no compiler here yet."""
    from lclm_jax.plan import topologies

    if topology.chip.dimensions == 0:
        raise ValueError(f"{topology.name}: compiling for GPUs without one is not supported yet; name a TPU slice")
    return topologies.tpu_devices(topology)


def _abstract_batch(config: Config, stage: str, mesh: Any) -> Batch:
    settings = config.stages[stage]
    shapes = batch_shapes(config.model, config.pack(stage), settings.batch_rows)
    places = batch_sharding(mesh, markers="marker_index" in shapes)
    return Batch(
        **{
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=getattr(places, name))
            for name, (shape, dtype) in shapes.items()
        }
    )

"""Flags of XLA's compilers that are known to matter, each by what it changes of a compiled step."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from lclm_jax.config.tree import Config
from lclm_jax.parallel.hardware import Chip
from lclm_jax.plan.expected.work import Segments
from lclm_jax.plan.plans import StagePlan, plan_stage
from lclm_jax.plan.topologies import Topology


class FlagSet(NamedTuple):
    """Flags that are set together."""

    name: str
    flags: Mapping[str, str | bool]
    """Names without dashes."""
    source: str
    """Who sets them, or says what they are for."""


class Effect(NamedTuple):
    """A step compiled with a set of flags."""

    flags: FlagSet | None
    """None: those of the environment alone."""
    plan: StagePlan | None
    refused: str = ""
    """What the compiler said of the flags."""


_MAXTEXT = "AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py, {}"
_NVIDIA = "docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance"
_VMEM = "xla_tpu_scoped_vmem_limit_kib"
# Without ``xla_sc_disjoint_spmem``: libtpu takes it of a process (the v6e cluster file sets it), not of one program.
_SPARSE_CORE: dict[str, str | bool] = {
    "xla_sc_disable_megacore_partitioning": True,
    "xla_sc_enable_instruction_fusion": False,
    "xla_tpu_use_tc_device_shape_on_sc": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
    "xla_tpu_enable_all_gather_offload_tracing": True,
    "xla_tpu_enable_all_reduce_offload_tracing": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
}

# Left out: continuation fusion with overlap of collectives, which gave NaN beside splash on v6e (jax issue 38741).
_TPU = (
    FlagSet("VMEM limit 32 MiB", {_VMEM: "32768"}, _MAXTEXT.format("DENSE_VMEM_LIMIT_FLAG")),
    FlagSet("VMEM limit 64 MiB", {_VMEM: "65536"}, _MAXTEXT.format("DENSE_VMEM_LIMIT_FLAG")),
    FlagSet("VMEM limit 96 MiB", {_VMEM: "98304"}, _MAXTEXT.format("DENSE_VMEM_LIMIT_FLAG")),
    FlagSet("async all-gather", {"xla_enable_async_all_gather": True}, _MAXTEXT.format("CF_FOR_ALL_GATHER")),
    FlagSet(
        "layout for reduce-scatter",
        {
            "xla_tpu_use_minor_sharding_for_major_trivial_input": True,
            "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": "1",
            "xla_tpu_assign_all_reduce_scatter_layout": True,
        },
        _MAXTEXT.format("LAYOUT_FOR_ALL_REDUCE_SCATTER"),
    ),
)
_WITH_SPARSE_CORES = (
    FlagSet(
        "collectives on SparseCores",
        _SPARSE_CORE,
        _MAXTEXT.format("ENABLE_SPARECORE_OFFLOADING_FOR_ALL_REDUCE_AND_ALL_GATHER"),
    ),
)
_GPU = (
    FlagSet("latency-hiding scheduler", {"xla_gpu_enable_latency_hiding_scheduler": True}, _NVIDIA),
    FlagSet(
        "larger combined collectives",
        {
            "xla_gpu_all_gather_combine_threshold_bytes": "134217728",
            "xla_gpu_reduce_scatter_combine_threshold_bytes": "67108864",
            "xla_gpu_all_reduce_combine_threshold_bytes": "134217728",
        },
        _NVIDIA,
    ),
    FlagSet(
        "pipelined collectives",
        {
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_enable_pipelined_all_reduce": True,
            "xla_gpu_enable_while_loop_double_buffering": True,
        },
        _NVIDIA,
    ),
    FlagSet("no command buffers", {"xla_gpu_enable_command_buffer": ""}, _NVIDIA),
)


def flag_sets(chip: Chip) -> tuple[FlagSet, ...]:
    """What is worth trying on ``chip``."""
    if chip.dimensions == 0:
        return _GPU
    return _TPU + (_WITH_SPARSE_CORES if chip.name in ("v6e", "tpu7x") else ())


def effects(
    config: Config,
    stage: str,
    topology: Topology,
    say: Callable[[str], None],
    reuse: bool = True,
    segments: Segments | None = None,
) -> Iterator[Effect]:
    """``stage`` compiled without more flags, then with each of ``flag_sets``; arguments as of ``search``.

    They are added to those of the environment. A set that the compiler refuses is told as refused.
    """
    sets: tuple[FlagSet | None, ...] = (None, *flag_sets(topology.chip))
    for one in sets:
        say(f"compiling with {'the flags of the environment' if one is None else one.name}")
        try:
            plan = plan_stage(config, stage, topology, reuse, segments=segments, flags={} if one is None else one.flags)
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if one is None:
                raise
            yield Effect(one, None, str(error).splitlines()[0])
        else:
            yield Effect(one, plan)

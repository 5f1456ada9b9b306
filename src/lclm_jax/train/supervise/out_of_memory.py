"""What to change when a step does not fit the devices' memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
from jax.sharding import Mesh

from lclm_jax.config import Config
from lclm_jax.errors import LclmError
from lclm_jax.parallel import batch_parts
from lclm_jax.parallel.zigzag import pieces_in

_SHOWN = 3
"""Remedies that a message names."""


class OutOfMemory(LclmError):
    """``stage`` does not fit the devices' memory; the message names the cheapest remedies."""

    def __init__(self, stage: str, message: str):
        super().__init__(message)
        self.stage = stage


@contextmanager
def memory_advice(config: Config, stage: str, mesh: Mesh) -> Iterator[None]:
    """Turn the device's "out of memory" into ``OutOfMemory`` with what to change; other errors pass."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        first = text.splitlines()[0][:300]
        raise OutOfMemory(
            stage,
            f"stage {stage} does not fit the devices' memory ({first}). {advice(config, stage, dict(mesh.shape))}\n"
            "`lclm plan CONFIG --topology ...` says beforehand what fits, and --search finds the fastest that does",
        ) from error


def advice(config: Config, stage: str, mesh: Mapping[str, int]) -> str:
    """The cheapest ``remedies``, numbered."""
    ways = (f"  {number}. {way}" for number, way in enumerate(remedies(config, stage, mesh), 1))
    return "\n".join(["Cheapest first:", *ways])


def remedies(config: Config, stage: str, mesh: Mapping[str, int]) -> list[str]:
    """The cheapest changes that lower the peak of a step on ``mesh`` (axis -> size), ``_SHOWN`` at most.

    They are sorted by their cost in time.

    More microbatches cost nothing but smaller products; sharding costs collectives; remat costs a third of the FLOPs.
    """
    own, model = config.stages[stage], config.model
    found = []
    rows = own.batch_rows // own.microbatches
    if rows % (2 * batch_parts(mesh)) == 0:
        key = f"stages.{stage}.microbatches={2 * own.microbatches}"
        found.append(f"--set {key}: {rows // 2} rows at once instead of {rows}, the same result")
    if mesh["replica"] > 1:
        found.append(
            f"--set mesh.replica=1 --set mesh.fsdp=-1: parameters over {mesh['replica']} times as many devices"
        )
    if model.remat != "full":
        found.append(f"--set model.remat=full: activations are recomputed instead of kept (now {model.remat})")
    context = 2 * mesh["context"]
    if mesh["fsdp"] % 2 == 0 and config.pack(stage).row_length % pieces_in(context) == 0:
        shared = f"{context} devices share a row, and gather its keys and values"
        found.append(f"--set mesh.context={context} --set mesh.fsdp={mesh['fsdp'] // 2}: {shared}")
    if config.train.optimizer.moment_dtype == "float32":
        found.append("--set train.optimizer.moment_dtype=bfloat16: first moments take half (another run, not a resume)")
    if model.param_dtype == "float32":
        found.append("--set model.param_dtype=bfloat16: parameters take half (another run)")
    if config.train.optimizer.kind != "adafactor":
        found.append("--set train.optimizer.kind=adafactor: no second moments of full size (another run)")
    found.append("more devices along mesh.fsdp")
    return found[:_SHOWN]

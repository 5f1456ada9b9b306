"""The real train step on real packed batches, and beside it the same model in PyTorch."""

import importlib.util
import itertools
import logging
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import psutil

from lclm_jax.batch import Batch
from lclm_jax.bench.flops import step_flops
from lclm_jax.bench.timing import measure_peaks, on_cpu, surroundings
from lclm_jax.config import Config, MeshConfig
from lclm_jax.config.base import suggestion
from lclm_jax.data.loading.position import batch_stats
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.parallel.hardware import peak_flops
from lclm_jax.train.core.initial_state import fresh_state, params_shardings, random_params
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.step import make_train_step, put_batch
from lclm_jax.types import JsonObject, Params

if TYPE_CHECKING:
    from lclm_jax.bench.torch_step import TorchStep

logger = logging.getLogger(__name__)


def bench_step(
    config: Config, stage: str | None, steps: int, repeats: int, torch: bool, profile: Path | None = None
) -> JsonObject:
    """Measure ``repeats`` times ``steps`` steps of ``stage`` (None: the last), from random weights.

    With ``torch`` (and torch installed) the same steps of the PyTorch model: on a CPU after every repetition of ours;
    on an accelerator, which is quieter and has no room for both, all of them before ours. ``profile``: a folder that
    gets a trace of one more repetition of ours.

    Returns:
        JSON values. Rates are medians over the repetitions, as is ``ratio``: ours to PyTorch's in tokens per second;
        ``ratios`` has that of each repetition.

    Raises:
        LclmError: the stage is unknown, or the corpus is not prepared.
    """
    # Here, so that a machine with little but JAX can time steps of batches that it makes itself.
    from lclm_jax.data.loading.loader import make_loader
    from lclm_jax.text.run_tokenizers import load_tokenizers, resolve

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is for PyTorch as well
    stage = stage or list(config.stages)[-1]
    if stage not in config.stages:
        raise LclmError(f"stage {stage!r} is unknown; {suggestion(stage, config.stages)}")
    tokenizers = load_tokenizers(config)
    config = resolve(config, tokenizers)
    with make_loader(config, stage, tokenizers) as loader:
        batches = [batch for batch, _ in itertools.islice(loader, steps)]
    params = _host_params(config)
    other = _torch_step(config, stage, params, batches[0]) if torch else None
    other_seconds = [] if other is None or on_cpu() else _alone(other, batches, repeats)
    ours = OurStep(config, stage, params)
    compile_seconds = ours.compile(batches[0])
    seconds: list[float] = []
    for number in range(repeats):
        seconds.append(ours.run(batches))
        if other is not None and on_cpu():
            other_seconds.append(other.run(batches))
        logger.info("repetition %d: %.3f s a step", number + 1, seconds[-1])
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            ours.run(batches)
    result = step_rates(config, stage, batches, seconds) | {"compile_seconds": compile_seconds, **memory_in_use()}
    result |= {"surroundings": surroundings(), "stage": stage, "steps": steps, "repeats": repeats}
    if other is not None:
        result["pytorch"] = _comparison(config, batches, seconds, other_seconds) | {"first_loss": other.first_loss}
        result["first_loss"] = ours.first_loss
    return result


class OurStep:
    """Our train step with its state."""

    def __init__(self, config: Config, stage: str, params: Params):
        self.mesh = make_mesh(config.mesh)
        optimizer = make_optimizer(config.train.optimizer, config.stages[stage], abstract_params(config.model))
        with use_mesh(self.mesh):
            placed = jax.device_put(params, params_shardings(config.model, self.mesh))
            self.state = fresh_state(placed, config.model, optimizer, self.mesh, config.seed)
            self.step = make_train_step(config, stage, optimizer, self.mesh)
        self.first_loss = float("nan")

    def compile(self, batch: Batch) -> float:
        """Seconds of tracing, compiling and a first step; keeps the loss of the first batch."""
        start = time.perf_counter()
        with use_mesh(self.mesh):
            self.state, metrics = self.step(self.state, put_batch(batch, self.mesh))
            self.first_loss = float(metrics["loss_nats"])
        return time.perf_counter() - start

    def run(self, batches: list[Batch]) -> float:
        """Seconds a step, batches placed before the clock starts."""
        with use_mesh(self.mesh):
            placed = jax.block_until_ready([put_batch(batch, self.mesh) for batch in batches])
            start = time.perf_counter()
            for batch in placed:
                self.state, metrics = self.step(self.state, batch)
            jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - start) / len(batches)


def _host_params(config: Config) -> Params:
    """Parameters of the run's seed as NumPy arrays, drawn on the host: both sides start from them."""
    mesh = make_mesh(MeshConfig(), jax.devices("cpu")[:1])
    with use_mesh(mesh):
        return jax.device_get(random_params(config.model, config.seed, mesh))


def _alone(other: "TorchStep", batches: list[Batch], repeats: int) -> list[float]:
    """Seconds a step of PyTorch in each repetition; its memory is given back."""
    seconds = [other.run(batches) for _ in range(repeats)]
    other.free()
    return seconds


def _torch_step(config: Config, stage: str, params: Params, first: Batch) -> "TorchStep | None":
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        logger.info("no comparison with PyTorch: %s not installed", " and ".join(missing))
        return None
    from lclm_jax.bench.torch_step import TorchStep

    return TorchStep(config, stage, params, first)


def step_rates(config: Config, stage: str, batches: list[Batch], seconds: list[float]) -> JsonObject:
    """Tokens a second, MFU and fill of ``batches`` by the median of ``seconds`` a step; JSON values."""
    stats = [batch_stats(batch) for batch in batches]
    step, steps = statistics.median(seconds), len(batches)
    counts = {name: sum(getattr(s, f"{name}_tokens") for s in stats) / steps for name in ("raw", "encoder", "decoder")}
    flops = sum(_flops(config, stage, batch) for batch in batches) / steps
    peak, source = _peak_flops()
    return {
        "seconds_per_step": step,
        "spread_seconds": [min(seconds), max(seconds)],
        "tokens_per_s": {name: count / step for name, count in counts.items()},
        "flops_per_step": flops,
        "mfu": flops / step / (peak * jax.device_count()),
        "peak_flops": peak,
        "peak_is": source,
        "encoder_fill": statistics.mean(s.encoder_fill for s in stats),
        "decoder_fill": statistics.mean(s.decoder_fill for s in stats),
    }


def _flops(config: Config, stage: str, batch: Batch) -> float:
    encoder = batch.encoder_segments.reshape(-1, batch.encoder_segments.shape[-1])
    return step_flops(config.model, config.stages[stage], encoder, batch.decoder_segments)


def _comparison(config: Config, batches: list[Batch], seconds: list[float], other: list[float]) -> JsonObject:
    """The ratio, and the part of it that padding explains: positions computed, weighed by their FLOPs."""
    from lclm_jax.bench.torch_step import padding_factor

    ratios = [theirs / own for own, theirs in zip(seconds, other, strict=True)]
    ratio = statistics.median(ratios)  # a disturbed repetition shows in the spread, not here
    padding = statistics.mean(padding_factor(config.model, batch) for batch in batches)
    return {
        "seconds_per_step": statistics.median(other),
        "spread_seconds": [min(other), max(other)],
        "ratio": ratio,
        "ratios": ratios,
        "of_which_padding_saved": padding,
        "of_which_arithmetic": ratio / padding,
    }


def _peak_flops() -> tuple[float, str]:
    """Peak FLOP/s of a device, and where the number is from."""
    kind = jax.devices()[0].device_kind
    known = peak_flops(kind)
    if known is not None:
        return known, f"data sheet of {kind}"
    return measure_peaks().matmul_flops, "measured: one large product, " + ("float32" if on_cpu() else "bfloat16")


def memory_in_use() -> dict[str, float]:
    """Bytes: the most that the device held, or what this process holds on a CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return {"peak_device_bytes": stats["peak_bytes_in_use"]}
    return {"resident_bytes": psutil.Process().memory_info().rss}

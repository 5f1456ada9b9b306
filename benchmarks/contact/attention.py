"""Attention: every backend of the platform against the reference, then how fast, in which blocks, beside libraries."""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.contact.lines import Lines

from lclm_jax.bench.cases import cross_entropy_cases, pooling_cases
from lclm_jax.bench.kernels import TOLERANCE, measure_case
from lclm_jax.bench.timing import measure_peaks, seconds_of
from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.kernels.attention import attention, backend_module
from lclm_jax.kernels.gpu import attention as triton
from lclm_jax.kernels.gpu import mosaic
from lclm_jax.kernels.gpu.flash import Tiling
from lclm_jax.kernels.platform import device_kind, platform
from lclm_jax.kernels.tpu import attention as ours_tpu
from lclm_jax.kernels.tpu import splash

Attend = Callable[..., jax.Array]
"""(q, k, v, segments [B, S]) -> out."""


class Shape(NamedTuple):
    """A case: rows of packed examples."""

    name: str
    rows: int
    length: int
    heads: int
    kv_heads: int
    width: int
    parts: int

    def __str__(self) -> str:
        sizes = f"{self.rows} x {self.length}, {self.heads}/{self.kv_heads} heads of {self.width}"
        return f"{self.name}: {sizes}, {self.parts} segments"


CHECKED = (
    Shape("packed", 2, 2048, 8, 2, 128, 7),
    Shape("one segment", 1, 4096, 4, 4, 128, 1),
    Shape("narrow heads", 2, 2048, 6, 2, 64, 9),
    Shape("no block divides it", 3, 1130, 4, 2, 128, 4),
)
TIMED = (
    Shape("decoder", 1, 16384, 32, 8, 128, 1),
    Shape("packed", 1, 16384, 32, 8, 128, 16),
    Shape("windows", 64, 1024, 16, 8, 128, 1),
)
SMALL = (Shape("small", 1, 192, 2, 1, 64, 3),)

Inputs = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def inputs(shape: Shape, seed: int = 0) -> Inputs:
    """q, k, v, a cotangent in bfloat16, segments: log-normal lengths, and padding at the end of a packed row."""
    rng = np.random.default_rng(seed)
    sizes = [(shape.rows, shape.length, count, shape.width) for count in (shape.heads, shape.kv_heads)]
    q, k, v, bar = (jnp.asarray(rng.normal(size=sizes[n]), jnp.bfloat16) for n in (0, 1, 1, 0))
    ids = np.ones((shape.rows, shape.length), np.int32)
    for row in ids if shape.parts > 1 else ():
        lengths = np.exp(0.8 * rng.normal(size=shape.parts))
        ends = np.floor(np.cumsum(lengths) / lengths.sum() * shape.length * 0.99).astype(int)
        row[:] = np.searchsorted(ends, np.arange(shape.length), side="right") + 1
        row[row > shape.parts] = 0
    return q, k, v, bar, jnp.asarray(ids)


def visible_flops(ids: jax.Array, shape: Shape) -> float:
    """Of a causal forward pass over the pairs that see each other."""
    pairs = sum(float(n) * (n + 1) / 2 for row in np.asarray(ids) for n in np.bincount(row)[1:])
    return 4 * pairs * shape.heads * shape.width


def with_gradients(run: Attend, which: tuple[int, ...] = (0, 1, 2)) -> Attend:
    """(q, k, v, cotangent, segments) -> output and the gradients of ``which``."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, bar: jax.Array, ids: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda *arrays: run(*arrays, ids), q, k, v)
        gradients = pull(bar.astype(out.dtype))
        return out, *(gradients[n] for n in which)

    return jax.jit(both)


def backends(small: bool) -> list[str]:
    """Those made for this platform; ``small``: those made for any accelerator, interpreted."""
    rows = ATTENTION_BACKENDS.items()
    return [
        name for name, row in rows if row.platform and (row.quick_to_interpret if small else row.platform == platform())
    ]


def attend(name: str, causal: bool, small: bool) -> Attend:
    """A backend as a function."""
    if small:
        run = functools.partial(backend_module(name).run, interpret=True)
        return lambda q, k, v, ids: run(q, k, v, (ids, ids), causal)
    return lambda q, k, v, ids: attention(q, k, v, segments=(ids, ids), causal=causal, backend=name)


def correct(lines: Lines) -> None:
    """Every kernel: near the reference in float32, the same bits twice, and none from another segment."""
    for shape in SMALL if lines.small else CHECKED:
        for causal in (True,) if lines.small else (True, False):
            q, k, v, bar, ids = inputs(shape, shape.length)
            truth = with_gradients(attend("reference", causal, False))
            wide = [x.astype(jnp.float32) for x in (q, k, v, bar)]
            want = [np.asarray(x) for x in truth(*wide, ids)]
            for name in backends(lines.small):
                case = f"{name}, {shape}, {'causal' if causal else 'bidirectional'}"
                run = with_gradients(attend(name, causal, lines.small))
                lines.attempt("correct", case, functools.partial(_checked, run, (q, k, v, bar, ids), want))
    for case in (*pooling_cases(lines.small)[: 1 if lines.small else None], *cross_entropy_cases(lines.small)):
        lines.attempt("correct", f"{case.kernel}: {case.shape}", functools.partial(_checked_case, case))


def _checked(run: Attend, arrays: Inputs, want: list[np.ndarray]) -> dict[str, object]:
    got, ids = [np.asarray(x, np.float32) for x in run(*arrays)], np.asarray(arrays[4])
    names = ("out", "dq", "dk", "dv")
    errors = {name: _error(*pair) for name, pair in zip(names, zip(got, want, strict=True), strict=True)}
    same = all((a == np.asarray(b, np.float32)).all() for a, b in zip(got, run(*arrays), strict=True))
    other = ids == ids.max()  # whatever happens to this segment, no bit of another one moves
    moved = (jnp.where(other[:, :, None, None], 3 - x, x) for x in arrays[:4])
    apart = True
    if (~other & (ids > 0)).any():
        after = run(*moved, arrays[4])
        apart = all((a[~other] == np.asarray(b, np.float32)[~other]).all() for a, b in zip(got, after, strict=True))
    right = all(error <= TOLERANCE for error in errors.values()) and same and apart
    return {"right": right, "errors": errors, "same_bits_twice": same, "segments_apart": apart}


def _checked_case(case) -> dict[str, object]:
    rows = [row for row in measure_case(case, None) if "right" in row]
    errors = {row["way"]: max(row["error"], row["gradient_error"]) for row in rows}
    return {"right": all(row["right"] for row in rows), "errors": errors}


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference as a share of the largest value."""
    worst = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
    return worst if np.isfinite(worst) else 1e9


class Variant(NamedTuple):
    """One kernel in one tiling."""

    backend: str
    kernel: str
    """``forward``, ``dq`` or ``dkv``, or ``both`` where a tiling is for all."""
    name: str
    run: Attend


def speeds(lines: Lines) -> None:
    """Default tilings beside others, packed rows beside one segment, libraries."""
    product = None if lines.small else measure_peaks().matmul_flops
    ours: dict[str, dict[str, float]] = {}
    for shape in SMALL if lines.small else TIMED:
        arrays = inputs(shape)
        for name in backends(lines.small)[: 1 if lines.small else None]:
            lines.attempt(
                "rates", f"{name}, {shape}", functools.partial(_rates, lines, name, shape, arrays, product, ours)
            )
    if "decoder" in ours and "packed" in ours:
        lines.say("packed", "16 segments", times_faster=ours["decoder"]["both"] / ours["packed"]["both"])
    for shape in SMALL if lines.small else TIMED[:2]:
        _libraries(lines, shape, inputs(shape), ours.get(shape.name))
    for shape in SMALL if lines.small else TIMED:
        _tilings(lines, shape, inputs(shape))


def _rates(
    lines: Lines, name: str, shape: Shape, arrays: Inputs, product: float | None, ours: dict[str, dict[str, float]]
) -> None:
    times = _times(attend(name, True, lines.small), arrays, lines.small)
    if times["both"] < ours.get(shape.name, times | {"both": np.inf})["both"]:
        ours[shape.name] = times  # of the fastest backend
    flops = visible_flops(arrays[4], shape)
    for passes, factor in (("forward", 1.0), ("backward", 2.5)):
        figures = {"ms": times[passes] * 1e3, "tflops": factor * flops / times[passes] / 1e12}
        # A packed row's blocks are partly masked, which is no fault of the kernel's.
        share = {"share_of_product": figures["tflops"] * 1e12 / product} if product and shape.parts == 1 else {}
        lines.say(passes, f"{name}, {shape}", **figures, **share)


def _times(run: Attend, arrays: Inputs, small: bool) -> dict[str, float]:
    q, k, v, bar, ids = arrays
    once = dict(repeats=1, least_seconds=0) if small else {}
    forward = jax.jit(run)
    alone = seconds_of(lambda: forward(q, k, v, ids), **once)
    step = with_gradients(run)
    both = seconds_of(lambda: step(q, k, v, bar, ids), **once)
    return {"forward": alone, "both": both, "backward": max(both - alone, 1e-9)}


def _libraries(lines: Lines, shape: Shape, arrays: Inputs, ours: dict[str, float] | None) -> None:
    found: dict[str, Attend] = {}
    if shape.parts == 1 or lines.small:  # they know no segments
        found["cuDNN by jax.nn"] = lambda q, k, v, ids: jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="xla" if lines.small else "cudnn"
        )
        if importlib.util.find_spec("tokamax") is not None:
            tokamax = importlib.import_module("tokamax")
            found["tokamax"] = lambda q, k, v, ids: tokamax.dot_product_attention(q, k, v, is_causal=True)
    for name, run in found.items():
        if platform() == "tpu" and "cuDNN" in name:
            continue

        def measure(run: Attend = run) -> dict[str, object]:
            times = _times(run, arrays, lines.small)
            faster = {"times_faster": times["both"] / ours["both"]} if ours else {}
            return {"forward_ms": times["forward"] * 1e3, "backward_ms": times["backward"] * 1e3, **faster}

        lines.attempt("library", f"{name}, {shape}", measure)


def _tilings(lines: Lines, shape: Shape, arrays: Inputs) -> None:
    """Each kernel's time in every tiling; the first is the default."""
    q, k, v, bar, ids = arrays
    once = dict(repeats=1, least_seconds=0) if lines.small else dict(repeats=3, least_seconds=0.05)
    measured: dict[str, dict[str, float]] = {}
    which = {"dq": (0,), "dkv": (1, 2), "both": (0, 1, 2)}
    for variant in variants(shape, lines.small):

        def measure(variant: Variant = variant) -> dict[str, object]:
            if variant.kernel == "forward":
                run = jax.jit(variant.run)
                took = seconds_of(lambda: run(q, k, v, ids), **once)
            else:
                step = with_gradients(variant.run, which[variant.kernel])
                took = seconds_of(lambda: step(q, k, v, bar, ids), **once)
                if variant.kernel != "both":  # a gradient needs the forward kernel; its default's time is taken off
                    took -= next(iter(measured[f"{variant.backend} forward"].values()))
            measured.setdefault(f"{variant.backend} {variant.kernel}", {})[variant.name] = took
            return {"kernel": variant.kernel, "ms": took * 1e3}

        lines.attempt("tried", f"{variant.backend} {variant.kernel} {variant.name}, {shape}", measure)
    for kernel, times in measured.items():
        default, best = next(iter(times)), min(times, key=times.__getitem__)
        share = {} if lines.small else {"speed_of_default": times[best] / times[default]}
        lines.say("tiling", f"{kernel}, {shape}", default=default, best=best, **share)


TRITON = {
    "forward": (Tiling(128, 128, 8, 3), Tiling(128, 128, 8, 2), Tiling(128, 64, 8, 3), Tiling(64, 128, 4, 3)),
    "dq": (Tiling(64, 64, 4, 2), Tiling(128, 64, 8, 3), Tiling(64, 128, 4, 2)),
    "dkv": (Tiling(64, 64, 4, 2), Tiling(128, 64, 8, 2), Tiling(64, 32, 4, 3)),
}
"""Beside the default; tokamax measured 128 x 128 x 3 and 64 x 64 x 2 as the fastest of its own kernels in Triton."""
MOSAIC = {
    "forward": ((128, 64, 3), (128, 64, 4), (128, 64, 2)),
    "dq": ((128, 64, 3), (128, 64, 4), (128, 128, 2)),
    "dkv": ((128, 64, 3),),
}
"""Beside the default: queries or keys of a program, of a block, stages."""
BLOCKS = (
    (512, 512, 512, True), (1024, 1024, 512, True), (1024, 1024, 512, False), (2048, 1024, 256, True),
    (2048, 1024, 256, False), (2048, 2048, 256, True),
)  # fmt: skip
"""For splash: forward, backward, keys at a time, whether its backward is one kernel."""


def variants(shape: Shape, small: bool) -> Iterator[Variant]:
    """Kernels of this platform in the default tiling, then in others."""
    if small or platform() == "gpu":
        yield from _gpu_variants("pallas_gpu", triton.layout_of(shape.width, "bfloat16", True), TRITON, shape, small)
    if platform() == "gpu":
        yield from _gpu_variants("mosaic_gpu", mosaic.layout_of(shape.width, True), MOSAIC, shape, small)
    if platform() == "tpu":
        default = splash.block_sizes(shape.length, shape.width, "bfloat16", device_kind())
        others = [splash.BlockSizes(*sizes) for sizes in BLOCKS if max(sizes[:3]) <= shape.length]
        for sizes in (default, *(sizes for sizes in others if sizes != default)):
            run, kernels = functools.partial(_splash, sizes), "one" if sizes.fused else "two"
            yield Variant("splash", "both", f"{sizes.forward} {sizes.backward} {sizes.part} {kernels}", run)
        group = shape.heads // shape.kv_heads
        tiling = ours_tpu.tiling_of(shape.length, shape.length, group, "bfloat16")
        yield Variant("pallas_tpu", "both", f"{tiling.q_tile} x {tiling.q_tiles}", attend("pallas_tpu", True, False))


def _gpu_variants(
    backend: str, default: triton.Layout | mosaic.Layout, tilings: Mapping[str, Iterable], shape: Shape, small: bool
) -> Iterator[Variant]:
    default = default._replace(interpret=True) if small else default
    for kernel, others in tilings.items():
        most = 0 if small else None if shape.name == "decoder" else 1
        for tiling in (getattr(default, kernel), *tuple(others)[:most]):
            run = functools.partial(_blocked, default._replace(**{kernel: tiling}))
            yield Variant(backend, kernel, " x ".join(map(str, tiling)), run)


def _blocked(layout: triton.Kernels, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    return triton.blocked_attention(layout, q, k, v, (ids, ids))


def _splash(sizes: splash.BlockSizes, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    return splash.scheduled_attention(sizes, (q, k, v), ids, True)

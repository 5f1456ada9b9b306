"""An all-reduce and an all-gather along each axis of the mesh, timed and checked."""

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lclm_jax.doctor.finding import Finding
from lclm_jax.parallel import AXES
from lclm_jax.parallel.hardware import CHIPS, chip_of

Kind = Literal["all-reduce", "all-gather"]
_REPEATS = 5
_SLOW, _BROKEN = 0.5, 0.1
"""Below these parts of the expected rate: worth a word; some link is not used at all."""


class CollectiveTime(NamedTuple):
    """One collective along one axis."""

    kind: Kind
    axis: str
    devices: int
    """Along the axis."""
    payload_bytes: int
    """Of one device, before the collective."""
    seconds: float
    """The best of several."""
    right: bool
    """Whether this process's devices hold what they should."""
    expected_bytes_per_s: float | None
    """What the links between the devices carry by their data sheet; None: not known."""

    @property
    def bytes_per_s(self) -> float:
        """Bytes that a device sends and receives, whatever the algorithm ("bus bandwidth" of nccl-tests)."""
        moved = (self.devices - 1) * self.payload_bytes
        return (2 * moved / self.devices if self.kind == "all-reduce" else moved) / self.seconds


def measure_collectives(mesh: Mesh, payload_bytes: int | None = None) -> list[CollectiveTime]:
    """Time both collectives along every axis of ``mesh`` that has several devices; all processes call it.

    ``payload_bytes``: of each device; None: 64 MiB, or 1 MiB on CPUs.
    """
    platform = mesh.devices.flat[0].platform
    elements = (payload_bytes or 2 ** (20 if platform == "cpu" else 26)) // 4
    kinds: tuple[Kind, ...] = ("all-reduce", "all-gather")
    return [_measure(mesh, axis, kind, elements) for axis in AXES if mesh.shape[axis] > 1 for kind in kinds]


def _measure(mesh: Mesh, axis: str, kind: Kind, elements: int) -> CollectiveTime:
    devices, spec = mesh.shape[axis], PartitionSpec(AXES)
    stride = 1
    for name in reversed(AXES):
        if name == axis:
            break
        stride *= mesh.shape[name]

    def place() -> jax.Array:
        """Number of this device in the mesh."""
        number = jnp.int32(0)
        for name in AXES:
            number = number * mesh.shape[name] + jax.lax.axis_index(name)
        return number

    def collective(x: jax.Array) -> jax.Array:
        if kind == "all-reduce":
            return jax.lax.psum(x, axis)
        return jax.lax.all_gather(x, axis, axis=0, tiled=True)

    def is_right(y: jax.Array) -> jax.Array:
        first = place() - jax.lax.axis_index(axis) * stride
        group = (first + stride * jnp.arange(devices) + 1).astype(jnp.float32)
        wanted = group.sum() if kind == "all-reduce" else group[:, None]
        return jnp.all(y == wanted).reshape(1)

    def mapped(f: Callable[..., jax.Array], takes: PartitionSpec | tuple[()]) -> Callable[..., jax.Array]:
        specs = () if takes == () else (takes,)
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False))

    def fill() -> jax.Array:
        return jnp.broadcast_to((place() + 1).astype(jnp.float32), (1, elements))

    x = mapped(fill, ())()
    run = mapped(collective, spec)
    result = jax.block_until_ready(run(x))  # compiles
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        result = jax.block_until_ready(run(x))
        seconds.append(time.perf_counter() - begin)
    flags = mapped(is_right, spec)(result)
    right = all(bool(shard.data[0]) for shard in flags.addressable_shards)
    expected = expected_rate(_group(mesh, axis))
    return CollectiveTime(kind, axis, devices, 4 * elements, min(seconds), right, expected)


def _group(mesh: Mesh, axis: str) -> list[jax.Device]:
    """The devices along ``axis`` that the first device of the mesh talks to."""
    place: list[int | slice] = [slice(None) if name == axis else 0 for name in AXES]
    return list(mesh.devices[tuple(place)])


def expected_rate(group: Sequence[jax.Device]) -> float | None:
    """Bytes a second that the links of a device of ``group`` carry in one direction, by the data sheet; None: unknown.

    Between slices of TPUs, and between machines of GPUs, every device has its part of the data-centre network, and
    those of a slice share their traffic. Inside it is one link for each dimension of the torus that the group extends
    along, a bound from below where the torus wraps around.
    """
    name = chip_of(group[0].device_kind)
    if name is None:
        return None
    chip = CHIPS[name]
    torus = chip.dimensions > 0
    islands = [getattr(device, "slice_index", 0) if torus else device.process_index for device in group]
    links = 1
    if torus:
        coords = [device.coords for device in group]
        links = max(1, sum(len({place[dimension] for place in coords}) > 1 for dimension in range(len(coords[0]))))
    inside = links * chip.link_bytes_per_s
    if (count := len(set(islands))) == 1:
        return inside
    return min(inside, chip.dcn_bytes_per_s * len(group) / count)


def check_collective(times: Sequence[CollectiveTime]) -> Finding:
    """One collective as all processes measured it: what came out, and its rate beside what the links should carry."""
    slowest = max(times, key=lambda one: one.seconds)
    name, rate, expected = f"{slowest.kind} {slowest.axis}", slowest.bytes_per_s, slowest.expected_bytes_per_s
    values = slowest._asdict() | {"bytes_per_s": rate}
    if wrong := [process for process, one in enumerate(times) if not one.right]:
        who = f"process{'es' if len(wrong) > 1 else ''} {', '.join(map(str, wrong[:8]))}"
        return Finding(name, "failure", f"wrong result in {who}; take the machine out of the job", values)
    text = f"{slowest.payload_bytes / 2**20:.0f} MiB in {slowest.seconds * 1e3:.2f} ms, {rate / 1e9:.3g} GB/s"
    if expected is None:
        return Finding(name, "ok", f"{text} over {slowest.devices} devices", values)
    share = f"{text}, {rate / expected:.0%} of {expected / 1e9:.0f} GB/s"
    if rate < _SLOW * expected:
        hint = "look for a network that is not used (NCCL_DEBUG=INFO says which is), other jobs, or a bad link"
        return Finding(name, "failure" if rate < _BROKEN * expected else "warning", f"{share}; {hint}", values)
    return Finding(name, "ok", share, values)

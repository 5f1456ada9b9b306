"""What a step spends its time on, from the profile that ``jax.profiler`` wrote.

A profile has planes (a device, or the host), planes have lines (streams, cores or threads), lines have events that may
lie inside each other, such as the body of a loop in the loop: an event's own time is what its inner events leave.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

KINDS = (
    ("attention", r"attention_(forward|dq|dkv)|splash|flash|fmha|sdpa"),
    ("pooling", r"pool_[a-z]+_(forward|backward)"),
    ("collectives", r"all-gather|all-reduce|all-to-all|reduce-scatter|collective|nccl|ragged-all"),
    ("products", r"dot|gemm|matmul|convolution|nvjet|cutlass|xmma|cublas|wgmma|ynn|onednn"),
    ("sorts, gathers and scatters", r"sort|scatter|gather"),
    ("copies", r"copy|copies|transpose|memcpy|memset|data formatting|slice|concatenate|pad"),
    ("elementwise work and reductions", r"fusion|reduce|loop_|input_|wrapped|add|multiply|exponential|convert|select"),
)
"""Kind of cost -> what its names look like; the first that fits. What none fits is ``other``."""


class Cost(NamedTuple):
    """What the operations of one kind take."""

    kind: str
    share: float
    """Of the time in which the devices were busy."""
    seconds: float
    """All devices, all steps."""
    largest: str
    """The operation of this kind that takes the most."""

    def __str__(self) -> str:
        return f"{self.kind} {self.share:.0%} (most of it {self.largest})"


def costs(folder: Path) -> list[Cost]:
    """By kind, the largest first, of the newest profile under ``folder``.

    Raises:
        ValueError: there is no profile, or none of its lines has an operation of a program.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(f"no *.xplane.pb under {folder}; jax.profiler.trace writes it")
    return costs_of(ProfileData.from_file(str(files[-1])))


def costs_of(profile: ProfileData) -> list[Cost]:
    """By kind, the largest first."""
    spent: dict[str, float] = defaultdict(float)
    for name, seconds in operations(profile):
        spent[name] += seconds
    if not spent:
        raise ValueError("the profile has no operation of a program: neither on a device nor on the host")
    total, kinds = sum(spent.values()), defaultdict(list)
    for name in spent:
        kinds[kind_of(name)].append(name)
    found = []
    for kind, names in kinds.items():
        largest, seconds = max(names, key=spent.__getitem__), sum(map(spent.__getitem__, names))
        found.append(Cost(kind, seconds / total, seconds, largest.partition(" (")[0]))
    return sorted(found, key=lambda cost: -cost.seconds)


def operations(profile: ProfileData) -> Iterator[tuple[str, float]]:
    """(name without its number, and the compiler's category if it says one, own seconds) of every operation.

    Of devices if there are any: of a GPU every stream, of a TPU the line ``XLA Ops``, because others repeat it by
    module, step and scope. Else of the host: events that say which operation of a program they are.
    """
    devices = [plane for plane in profile.planes if re.match(r"/device:(GPU|TPU):\d+", plane.name)]
    planes = devices or [plane for plane in profile.planes if plane.name == "/host:CPU"]
    for plane in planes:
        for line in plane.lines:
            if devices and not re.match(r"Stream|XLA Ops$", line.name):
                continue
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if devices or "hlo_op" in stats:
                    category = stats.get("hlo_category")
                    name = re.sub(r"[.\d]+$", "", event.name.lstrip("%").partition(" =")[0]) or event.name
                    events.append((event.start_ns, -event.duration_ns, f"{name} ({category})" if category else name))
            yield from _own_times(sorted(events))


def _own_times(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, seconds) of events (start, - duration, name), in order, less those inside them."""
    open_: list[tuple[float, str, float]] = []  # end, name, own nanoseconds
    for start, minus, name in [*events, (float("inf"), 0.0, "")]:
        while open_ and open_[-1][0] <= start:
            _, done, own = open_.pop()
            yield done, max(own, 0.0) / 1e9
        if open_:
            end, outer, own = open_[-1]
            open_[-1] = (end, outer, own + minus)
        open_.append((start - minus, name, -minus))


def kind_of(name: str) -> str:
    """Kind of cost of an operation by its name and category."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name.lower())), "other")

"""What a check found, and the findings of all processes as one list."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from lclm_jax.types import Json, JsonObject

Status = Literal["ok", "warning", "failure"]
"""``warning``: the job may run, worse than it could. ``failure``: it will not run, or not as it should."""

_RANK: dict[Status, int] = {"ok": 0, "warning": 1, "failure": 2}


class Finding(NamedTuple):
    """What one check found in one process, or, after ``merged``, in several."""

    check: str
    """Name of the check: versions, devices, storage ..."""
    status: Status
    message: str
    """What was found; for a warning or failure also what to do."""
    values: Mapping[str, Json] = {}
    """What was measured, units in the names."""
    processes: tuple[int, ...] = ()
    """Numbers of the processes that found it; empty: what was found holds for the whole job."""

    def as_json(self) -> JsonObject:
        """As plain values."""
        return {**self._asdict(), "values": dict(self.values), "processes": list(self.processes)}

    def shown(self, total: int) -> str:
        """The message, with the processes that found it unless all ``total`` did."""
        if not 0 < len(self.processes) < total:
            return self.message
        from lclm_jax.parallel.rendezvous import ranks  # which starts JAX; a wrong version of it is shown without

        return f"process{'es' if len(self.processes) > 1 else ''} {ranks([*self.processes])}: {self.message}"


def merged(findings: Iterable[list[Finding]]) -> list[Finding]:
    """The findings of processes 0, 1, ...: equal ones once, with the numbers of their processes.

    Of those that are in order the first process's stand for all: their figures differ everywhere.
    """
    found: dict[tuple[str, Status, str], Finding] = {}
    for process, own in enumerate(findings):
        for finding in own:
            key = (finding.check, finding.status, "" if finding.status == "ok" else finding.message)
            earlier = found.get(key, finding._replace(processes=()))
            found[key] = earlier._replace(processes=(*earlier.processes, process))
    order = {check: place for place, check in enumerate(dict.fromkeys(key[0] for key in found))}
    return sorted(found.values(), key=lambda one: (order[one.check], _RANK[one.status]))


def shown_bytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

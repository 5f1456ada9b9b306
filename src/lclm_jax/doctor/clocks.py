"""Whether the clocks of all machines agree."""

from collections.abc import Sequence

from lclm_jax.doctor.finding import Finding

WARN_SECONDS, FAIL_SECONDS = 2.0, 60.0
"""Events and metrics get out of order; leases of locks and tokens of clouds are refused."""


def check_clocks(seconds: Sequence[float]) -> Finding:
    """Compare clocks that all processes read at about the same time, after a barrier; seconds since the epoch."""
    if len(seconds) == 1:
        return Finding("clocks", "ok", "one process")
    middle = sorted(seconds)[len(seconds) // 2]
    worst = max(range(len(seconds)), key=lambda process: abs(seconds[process] - middle))
    apart = max(seconds) - min(seconds)
    values = {"apart_seconds": apart}
    if apart < WARN_SECONDS:
        return Finding("clocks", "ok", f"at most {apart:.2f} s apart", values)
    what = f"clocks are {apart:.1f} s apart, that of process {worst} the most; synchronise them (chrony, NTP)"
    return Finding("clocks", "failure" if apart >= FAIL_SECONDS else "warning", what, values)

"""What preparation leaves out or notes, counted by reason, with a few samples of the bad rows."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

SAMPLES = 3
"""Bad rows kept of each reason and part."""
_EXCERPT = 200


def left_out(counts: Mapping[str, int], rejects: Sequence[ReadOnlyJson]) -> str:
    """What was left out, by reason, and a bad row of the commonest reason, for messages."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "nothing"
    shown = max(rejects, key=lambda reject: counts[reject["reason"]], default=None)
    sample = "" if shown is None else "; such as {place} ({reason}): {excerpt}".format(**shown)
    return f"left out: {reasons}{sample}"


class BadRow(LclmError):
    """A bad row where none is allowed (``--strict``)."""


class RejectCounter:
    """Counts by reason; ``reject`` is for rows that are broken, ``note`` for what is left out or cut on purpose."""

    def __init__(self, strict: bool = False):
        self.counts: Counter[str] = Counter()
        self.rejects: list[JsonObject] = []
        self._strict = strict

    def note(self, reason: str) -> None:
        """Count one."""
        self.counts[reason] += 1

    def reject(self, reason: str, place: str, excerpt: object) -> None:
        """Count a bad row and keep it among the samples; raises ``BadRow`` if strict."""
        self.counts[reason] += 1
        shown = excerpt if isinstance(excerpt, str) else repr(excerpt)
        shown = shown[:_EXCERPT].encode("utf-8", "replace").decode()
        if self._strict:
            raise BadRow(f"{place}: {reason} ({shown!r}); repair it, or prepare without --strict to count such rows")
        if self.counts[reason] <= SAMPLES:
            self.rejects.append({"place": place, "reason": reason, "excerpt": shown})

"""What preparation leaves out or notes, counted by reason, with a few samples of the bad rows."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

SAMPLES = 3
"""Bad rows kept of each reason and part."""
_EXCERPT = 200


def left_out(counts: Mapping[str, int], rejects: Sequence[ReadOnlyJson], files: Sequence[ReadOnlyJson] = ()) -> str:
    """What was left out, by reason, and a bad row or file of the commonest reason, for messages."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "nothing"
    samples = [(reject["reason"], "{place} ({reason}): {excerpt}".format(**reject)) for reject in rejects]
    samples += [(file["reason"], "{file} ({reason}): {fault}".format(**file)) for file in files]
    shown = max(samples, key=lambda sample: counts[sample[0]], default=None)
    return f"left out: {reasons}" + ("" if shown is None else f"; such as {shown[1]}")


class BadRow(LclmError):
    """A bad row where none is allowed (``--strict``)."""


class RejectCounter:
    """Counts by reason; ``reject`` is for rows that are broken, ``note`` for what is left out or cut on purpose."""

    def __init__(self, strict: bool = False):
        self.counts: Counter[str] = Counter()
        self.rejects: list[JsonObject] = []
        self.files: list[JsonObject] = []
        """Files that cannot be used, or not to their end: name, reason and what is wrong."""
        self._strict = strict

    def note(self, reason: str) -> None:
        """Count one."""
        self.counts[reason] += 1

    def reject(self, reason: str, place: str, excerpt: object) -> None:
        """Count a bad row and keep it among the samples; raises ``BadRow`` if strict."""
        self.counts[reason] += 1
        shown = excerpt if isinstance(excerpt, str) else repr(excerpt)
        shown = shown[:_EXCERPT].encode("utf-8", "replace").decode()
        self._refuse(reason, place, repr(shown))
        if self.counts[reason] <= SAMPLES:
            self.rejects.append({"place": place, "reason": reason, "excerpt": shown})

    def reject_file(self, reason: str, name: str, fault: str) -> None:
        """Count a file that cannot be used, or not to its end, and keep its name; raises ``BadRow`` if strict."""
        self._refuse(reason, name, fault)
        self.note_file(reason, name, fault)

    def note_file(self, reason: str, name: str, fault: str) -> None:
        """Count a file that gives nothing and keep its name."""
        self.counts[reason] += 1
        self.files.append({"file": name, "reason": reason, "fault": fault.encode("utf-8", "replace").decode()})

    def _refuse(self, reason: str, place: str, shown: str) -> None:
        if self._strict:
            raise BadRow(f"{place}: {reason} ({shown}); repair it, or prepare without --strict to count such rows")

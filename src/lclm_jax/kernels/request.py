"""What one call of attention asks for, so that each backend can say whether it can honour it."""

import dataclasses

SAVED = "attention"
"""Checkpoint name of a kernel's output and log-sum-exp: where both are saved, the backward runs no forward kernel."""


@dataclasses.dataclass(frozen=True)
class AttentionRequest:
    """Everything but the numbers. Every request has segments, with 0 as padding: no backend may ignore them."""

    platform: str
    """``cpu``, ``tpu``, ``gpu``: of the devices that will run it, see ``platform.platform``."""
    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    causal: bool
    to_itself: bool
    """Whether queries and keys share one array of segments: the same positions of the same row."""
    offset: bool
    """Whether each row's queries begin at a place of their own among the keys, known at run time only."""

    def __str__(self) -> str:
        """One line for messages."""
        order = "causal" if self.causal else "bidirectional"
        offset = " with an offset" if self.offset else ""
        return (
            f"{order} attention of {self.queries} queries to {self.keys} keys{offset},"
            f" {self.heads}/{self.kv_heads} heads of {self.head_dim}, {self.dtype}, on {self.platform}"
        )

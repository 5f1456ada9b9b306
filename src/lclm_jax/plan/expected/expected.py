"""What is expected of a step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """Seconds of a step by what they go to, and what they were reckoned from."""

    products_s: float
    """Products with weights, the output head among them."""
    kernels_s: float
    """Attention and other kernels of our own, at rates that were timed on chips."""
    elementwise_s: float
    """Norms, activations, softmax, copies: what moves through memory."""
    rows_s: float
    """Rows looked up in tables, sorted and added to their gradients."""
    optimizer_s: float
    network_s: float
    """Of collectives, what arithmetic does not hide."""
    segments_per_row: float
    visible_share: float
    """Pairs of a query and a key that it sees, of those of a row of one segment."""
    visible_flops: float
    """Of a step's model FLOPs over all chips, without attention between segments."""
    compiled: bool
    """Whether products and elementwise work are the compiler's own estimate."""
    assumed_from: str
    """The chip whose timings stand in for those of this one; empty: its own."""

    @property
    def step_s(self) -> float:
        """All of them, one after the other."""
        return self.products_s + self.kernels_s + self.elementwise_s + self.rows_s + self.optimizer_s + self.network_s

"""Places of spans in one document, as indices of its cuts; ``data.walk`` places them in all documents of an epoch."""

import numpy as np


def snap(cuts: np.ndarray, start: int, length: int) -> int:
    """Index of the cut after ``start`` that lies nearest to ``length`` tokens from it, the nearer one on a tie.

    At the end of the document (``start`` is the last cut) the answer is ``start``.

    >>> snap(np.array([0, 2, 5, 9]), start=1, length=4)  # 6 tokens into the text: cut 2 is at 5
    2
    """
    last = len(cuts) - 1
    if start >= last:
        return start
    wanted = int(cuts[start]) + length
    above = min(max(int(np.searchsorted(cuts, wanted)), start + 1), last)
    below = max(above - 1, start + 1)
    return below if wanted - int(cuts[below]) <= int(cuts[above]) - wanted else above

"""Progress of long work as log lines."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


def log_progress(seconds: float = 20.0, unit: str = "MB", scale: float = 1e6) -> Callable[[int, int], None]:
    """Progress in lines with the time left: one now and then, at most every ``seconds``, and one at the end.

    What is counted is shown in units of ``scale``.
    """
    begun = said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done < total and now - said < seconds:
            return
        said = now
        left = (now - begun) * (total - done) / max(done, 1)
        logger.info("%3.0f %% of %.1f %s, %.0f s left", 100 * done / max(total, 1), total / scale, unit, left)

    return progress

"""Results of a part, a line each, written as soon as they are known, and the time that is left for more."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path


class Lines:
    """The file that a part writes to."""

    def __init__(self, path: Path, seconds: float, small: bool):
        self.path, self.small = path, small
        self.began, self.ends = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic() + seconds

    def say(self, what: str, case: str = "", **figures: object) -> None:
        """Write one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "case": case, **figures}, default=float) + "\n")

    def attempt(self, what: str, case: str, measure: Callable[[], dict[str, object] | None]) -> None:
        """Write what ``measure`` returns, or why it failed, or that no time was left. None: there is nothing to say."""
        if time.monotonic() > self.ends:
            self.say(what, case, failed="no time left")
            return
        try:
            figures = measure()
        except Exception as error:  # noqa: BLE001  whatever one case breaks, the next ones are still to be measured
            said = (str(error).splitlines() or [""])[0][:200].replace("|", "/")
            self.say(what, case, failed=f"{type(error).__name__}: {said}")
        else:
            if figures is not None:
                self.say(what, case, **figures)

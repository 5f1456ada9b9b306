"""Steps whose loss or gradient was not finite: counted, and their rows written down for inspection."""

import json
import logging
from pathlib import Path

import jax
import numpy as np

from lclm_jax.data.loading.position import BatchLoader
from lclm_jax.files import write_text
from lclm_jax.train.logging.records import Record

logger = logging.getLogger(__name__)

_KEPT = 100
"""No more files than this: a run that has diverged must not fill the disk."""


class NonfiniteSteps:
    """Writes ``nonfinite/step-N.json`` below ``stage_folder`` for each bad step, in the first process.

    ``first_row``: that of step 0, had all steps ``batch_rows``; not 0 where a stage was forced to resume with another.
    """

    def __init__(self, stage_folder: Path, loader: BatchLoader, batch_rows: int, first_row: int):
        self.folder = stage_folder / "nonfinite"
        self._loader, self._batch_rows = loader, batch_rows
        self.in_a_row = 0
        """Bad steps up to the newest."""
        self._first_row = first_row

    def step(self, step: int, record: Record, finite_rows: np.ndarray) -> int:
        """Take the record of a step and which rows had a finite loss (bool [rows]); how many bad steps in a row.

        The file names the rows whose own loss was not finite or, where only the gradient was not, all rows.
        """
        if not record["nonfinite"]:
            self.in_a_row = 0
            return 0
        self.in_a_row += 1
        first = self._first_row + step * self._batch_rows
        rows = first + np.flatnonzero(~finite_rows)
        kind = "loss" if rows.size else "gradient"
        if not rows.size:
            rows = first + np.arange(self._batch_rows)
        logger.warning("step %d: %s not finite, update skipped (%d in a row)", step, kind, self.in_a_row)
        if jax.process_index() == 0 and len(list(self.folder.glob("*.json"))) < _KEPT:
            self._write(step, kind, rows.tolist(), record)
        return self.in_a_row

    def _write(self, step: int, kind: str, rows: list[int], record: Record) -> None:
        content = {
            "step": step,
            "not_finite": kind,
            "rows": {row: self._loader.describe(row) for row in rows},
            "look": f"lclm data show RUN --from {rows[0]} --rows 1",
            "record": record,
        }
        path = self.folder / f"step-{step}.json"
        write_text(path, json.dumps(content, indent=1) + "\n")

"""Profiler traces of a few steps."""

from pathlib import Path

import jax

from lclm_jax.config.train import parse_skip_range
from lclm_jax.types import PyTree


class StepProfiler:
    """Writes a trace of the steps ``first-last`` below ``folder``, and what is in memory after the last of them.

    Args:
        steps: inclusive range such as ``"10-12"``; None: no trace.
        folder: gets ``plugins/profile/TIME/``, with ``perfetto_trace.json.gz`` in it, for XProf, TensorBoard and
            Perfetto, and ``memory-process-R.prof`` for pprof: every live array by the line that made it.
    """

    def __init__(self, steps: str | None, folder: Path):
        self._first, self._last = parse_skip_range(steps) if steps is not None else (-1, -1)
        self._folder, self._running = folder, False

    def begin(self, step: int) -> None:
        """Start the trace if ``step`` is its first (or the first of this process that lies in it)."""
        if not self._running and self._first <= step <= self._last:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True

    def end(self, step: int, results: PyTree) -> None:
        """Stop the trace after its last step, when the ``results`` of that step are there."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self.close()
            jax.profiler.save_device_memory_profile(self._folder / f"memory-process-{jax.process_index()}.prof")

    def close(self) -> None:
        """Write the trace if one is running: the stage ended, or failed, inside its range."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

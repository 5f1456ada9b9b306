"""What a stage needs beside its configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.loading.position import BatchLoader, Position
from lclm_jax.errors import LclmError
from lclm_jax.train.core.in_training_eval import Probe
from lclm_jax.train.logging.progress import Reporter


class TrainingDiverged(LclmError):
    """Too many updates in a row were not finite, or too many loss spikes were undone."""


@dataclass(frozen=True)
class StageRun:
    """What a stage needs beside its configuration.

    Attributes:
        config: the run, with ``model.memory_token_ids`` set.
        stage: name of the stage.
        mesh: devices.
        open_loader: where to begin -> the loader of the rest of the stage.
        initial_params: makes the sharded parameters that the stage begins with.
        reporter: is told of every step.
        probe: measures parameters now and then; it only reads them.
        force: go on from a checkpoint that was made with other settings or data.
    """

    config: Config
    stage: str
    mesh: Mesh
    open_loader: Callable[[Position], BatchLoader]
    initial_params: Callable[[], Any]
    reporter: Reporter
    probe: Probe | None = None
    force: bool = False

    @property
    def folder(self) -> Path:
        """Everything that the stage writes."""
        return RunPaths(self.config).stage(self.stage)

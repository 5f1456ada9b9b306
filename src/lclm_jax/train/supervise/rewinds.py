"""Skip ranges that a run gave itself after loss spikes, kept beside the stage's checkpoints."""

import json
from pathlib import Path

from lclm_jax.config import Config
from lclm_jax.files import write_text

NAME = "rewinds.json"


class RewindRequested(Exception):
    """Training is to go on from the checkpoint before step ``first``, skipping steps ``first`` to ``last``."""

    def __init__(self, first: int, last: int):
        super().__init__(f"loss spike in steps {first} to {last}")
        self.first, self.last = first, last


def read_rewinds(stage_folder: Path) -> list[tuple[int, int]]:
    """(first, last) step of every spike that was skipped so far."""
    path = stage_folder / NAME
    return [(first, last) for first, last in json.loads(path.read_text())] if path.exists() else []


def add_rewind(stage_folder: Path, rewind: RewindRequested) -> None:
    """Remember to skip the steps of ``rewind``."""
    write_text(stage_folder / NAME, json.dumps([*read_rewinds(stage_folder), (rewind.first, rewind.last)]))


def with_skips(config: Config, stage: str, rewinds: list[tuple[int, int]]) -> Config:
    """``config`` whose ``stage`` also skips the steps of ``rewinds``."""
    if not rewinds:
        return config
    own = config.stages[stage]
    skips = (*own.skip_steps, *(f"{first}-{last}" for first, last in rewinds))
    return config.model_copy(update={"stages": {**config.stages, stage: own.model_copy(update={"skip_steps": skips})}})

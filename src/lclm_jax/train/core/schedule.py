"""Learning rate by step: linear warm-up, then cosine to a floor, constant, or stable and a linear decay at the end."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lclm_jax.config import StageConfig
from lclm_jax.errors import LclmError


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of a step; update k (from 0) is made with ``schedule(k + 1)``.

    Reference: ``shared/reference/lr_schedule.json`` (warm-up counts from 0, so the first update is not lost).

    Attributes:
        peak: learning rate at the end of the warm-up.
        steps: updates of the whole run.
        warmup: steps of linear warm-up from 0.
        min_lr: floor that the cosine reaches, an absolute learning rate.
        kind: ``cosine``, ``constant`` or ``wsd`` (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395) after the
            warm-up.
        cosine_fraction: share of the steps after the warm-up that the cosine takes, in whole steps, rounded down; the
            floor follows.
        decay_share: share of all steps that the decay of ``wsd`` takes, linear to ``min_lr`` at the last step.
    """

    peak: float
    steps: int
    warmup: int = 0
    min_lr: float = 0.0
    kind: str = "cosine"
    cosine_fraction: float = 1.0
    decay_share: float = 0.2

    def __call__(self, step: ArrayLike) -> jax.Array:
        """Learning rate at ``step`` (an int, or an int32 array under jit): float32, shape of ``step``."""
        xp = np if isinstance(step, int | np.ndarray | np.generic) else jnp
        now = xp.asarray(step, dtype=np.float32)
        if self.kind == "constant":
            after = xp.full_like(now, self.peak)
        elif self.kind == "wsd":
            left = xp.clip((self.steps - now) / np.float32(max(self.steps * self.decay_share, 1.0)), 0.0, 1.0)
            after = self.min_lr + (self.peak - self.min_lr) * left
        else:
            length = max(int((self.steps - self.warmup) * self.cosine_fraction), 1)
            # sin^2 of what is left, not 1 + cos of what is done: no cancellation in float32 near the floor.
            left = xp.clip((np.float32(self.warmup + length) - now) / np.float32(length), 0.0, 1.0)
            after = self.min_lr + (self.peak - self.min_lr) * xp.sin(np.float32(np.pi / 2) * left) ** 2
        rising = now * np.float32(self.peak / max(self.warmup, 1))
        rate: jax.Array = xp.where(now < self.warmup, rising, after).astype(np.float32)
        return rate


def stage_schedules(stage: StageConfig, parts: tuple[str, ...]) -> dict[str, Callable[[ArrayLike], jax.Array]]:
    """Schedule of each of ``parts``; raises ``LclmError`` for a frozen part or a floor above the peak."""
    schedules: dict[str, Callable[[ArrayLike], jax.Array]] = {}
    for part in parts:
        peak = stage.peak_lr(part)
        if peak is None:
            raise LclmError(f"part {part} is frozen in this stage; it has no learning rate")
        if peak < stage.min_lr:
            raise LclmError(
                f"min_lr={stage.min_lr} is above the peak learning rate {peak} of part {part}; lower min_lr or raise"
                " the peak"
            )
        schedules[part] = Schedule(
            peak, stage.steps, stage.warmup, stage.min_lr, stage.schedule, decay_share=stage.decay_share
        )
    return schedules

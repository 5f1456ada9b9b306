"""``lclm chaos``: an undisturbed run, a disturbed one, and the comparison of what they learned."""

import logging
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lclm_jax.config import Config
from lclm_jax.drills.faults import FAULTS, LOST_DISK
from lclm_jax.drills.small_disk import SmallDisk
from lclm_jax.drills.trainer import DEVICES, DrillFailure, Trainer
from lclm_jax.paths import is_remote
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.logging.events import read_events
from lclm_jax.train.logging.records import MEASURED, read_metrics
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

_DISK_BYTES = 256 * 2**20


@dataclass
class Strike:
    """One fault: what, when, and how it went."""

    kind: str
    step: int
    survived: bool = False
    redone_steps: int = 0
    lost_seconds: float = 0.0
    message: str = ""


def plan_strikes(faults: int, every_steps: int, seed: int, kinds: Sequence[str] = tuple(FAULTS)) -> list[Strike]:
    """``faults`` strikes in random order, each of ``kinds`` as often as any other (but for the remainder).

    The first comes after two intervals, so that there are checkpoints to damage.
    """
    draw = random.Random(seed)  # noqa: S311 - a drill, not a secret
    order = [kind for _ in range(-(-faults // len(kinds))) for kind in draw.sample(list(kinds), len(kinds))][:faults]
    return [
        Strike(kind, (number + 2) * every_steps + draw.randrange(every_steps // 3)) for number, kind in enumerate(order)
    ]


def drill_config(config: Config, strikes: Sequence[Strike], every_steps: int, run_dir: Path) -> Config:
    """``config`` in ``run_dir``, long enough for all strikes."""
    (name, stage), *_ = config.stages.items()
    steps = strikes[-1].step + 2 * every_steps
    return config.model_copy(
        update={
            "run_dir": str(run_dir),
            "stages": {name: stage.model_copy(update={"steps": steps})},
        }
    )


def run_drill(
    config: Config,
    faults: int,
    seed: int,
    prepare: Callable[[Config], object],
    every_steps: int = 40,
    patience_seconds: float = 300.0,
) -> JsonObject:
    """Train undisturbed, then disturbed, and compare.

    Args:
        config: a run of one stage with data workers; everything goes below its ``run_dir``.
        faults: how many to inject, over all kinds.
        seed: of the order and places of the faults.
        prepare: makes the run's data.
        every_steps: steps between faults.
        patience_seconds: longest wait for the trainer to notice, end or resume.

    Returns:
        ``strikes``, ``identical`` (final parameters and losses, bit for bit), ``differences`` and seconds of both runs.
    """
    root = _emptied(config.run_dir)
    strikes = plan_strikes(faults, every_steps, seed, _possible(config))
    calm = drill_config(config, strikes, every_steps, root / "undisturbed")
    rough = drill_config(config, strikes, every_steps, root / "disturbed")
    logger.info("preparing data")
    prepare(calm)
    for name in ("data", "tokenizer"):
        shutil.copytree(root / "undisturbed" / name, root / "disturbed" / name)
    began = time.monotonic()
    logger.info("undisturbed run: %d steps", calm.stages[next(iter(calm.stages))].steps)
    nan_steps = [strike.step for strike in strikes if strike.kind == "NaN gradients"]
    reference = Trainer(calm, patience_seconds, nan_steps)
    try:
        reference.start()
        _finish(reference)
    finally:
        reference.kill()
    calm_seconds = time.monotonic() - began
    logger.info("undisturbed run: %.0f s; now with %d faults", calm_seconds, len(strikes))
    trainer = Trainer(rough, patience_seconds, nan_steps)
    with SmallDisk(trainer.folder.parent, _DISK_BYTES) as disk:
        began = time.monotonic()
        try:
            _disturb(trainer, strikes, random.Random(seed + 1), disk)  # noqa: S311
        finally:
            trainer.kill()
        rough_seconds = time.monotonic() - began
        differences = compare(reference, trainer)
    return {
        "strikes": [asdict(strike) for strike in strikes],
        "differences": differences,
        "identical": not differences,
        "survived": sum(strike.survived for strike in strikes),
        "steps": calm.stages[next(iter(calm.stages))].steps,
        "undisturbed_seconds": calm_seconds,
        "disturbed_seconds": rough_seconds,
    }


def _possible(config: Config) -> list[str]:
    """The kinds of faults that a run of ``config`` can survive."""
    if config.mesh.replica == DEVICES:
        return list(FAULTS)
    logger.info("left out: %s, as mesh.replica is not %d", LOST_DISK, DEVICES)
    return [kind for kind in FAULTS if kind != LOST_DISK]


def _emptied(run_dir: str) -> Path:
    if is_remote(run_dir):
        raise DrillFailure(f"run_dir={run_dir}: faults are injected into a run on a disk; name a local folder")
    if Path(run_dir).exists():
        shutil.rmtree(run_dir)
    return Path(run_dir)


def _disturb(trainer: Trainer, strikes: Sequence[Strike], draw: random.Random, disk: SmallDisk) -> None:
    trainer.start()
    for number, strike in enumerate(strikes, 1):
        reached, redone, began = 0, 0, time.monotonic()
        try:
            trainer.wait_for_step(strike.step + 1)
            reached, redone, began = trainer.step(), _redone(trainer), time.monotonic()
            FAULTS[strike.kind](trainer, draw, disk)
            trainer.wait_for_step(reached + 1)
            strike.survived = True
        except DrillFailure as failure:
            strike.message = str(failure)
            trainer.kill()
            trainer.start()
        strike.lost_seconds = time.monotonic() - began
        strike.redone_steps = _redone(trainer) - redone
        logger.info(
            "[%d/%d] %s at step %d: %s, %d steps redone, %.1f s",
            number, len(strikes), strike.kind, reached, "survived" if strike.survived else strike.message,
            strike.redone_steps, strike.lost_seconds,
        )  # fmt: skip
    _finish(trainer)


def _finish(trainer: Trainer) -> None:
    trainer.wait_for_step(trainer.config.stages[trainer.stage].steps)
    status = trainer.wait()
    if status != 0:
        raise DrillFailure(f"training ended with status {status}: {trainer.printed()[-400:]}")


def _redone(trainer: Trainer) -> int:
    return sum(event["redone_steps"] for event in read_events(trainer.folder) if event["kind"] == "begin")


def compare(one: Trainer, other: Trainer) -> list[str]:
    """What differs between the final parameters and the logged steps of two runs; empty: nothing."""
    final = [trainer.checkpoints / str(trainer.config.stages[trainer.stage].steps) for trainer in (one, other)]
    if not final[1].is_dir():
        return [f"the disturbed run has no final checkpoint {final[1]}"]
    first, second = LazyCheckpoint(final[0]), LazyCheckpoint(final[1])
    found = [
        f"parameter {path} differs" for path in first.shapes if not np.array_equal(first.read(path), second.read(path))
    ]
    records = [list(read_metrics(trainer.folder / "metrics.jsonl")) for trainer in (one, other)]
    if [record["step"] for record in records[0]] != [record["step"] for record in records[1]]:
        found.append("the logged steps differ")
    for mine, theirs in zip(*records, strict=False):
        names = [name for name in mine if not name.endswith(MEASURED) and mine[name] != theirs.get(name)]
        if names:
            found.append(f"step {mine['step']}: {', '.join(names)} differ")
            break
    return found

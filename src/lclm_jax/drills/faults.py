"""The faults of a drill: each disturbs a running trainer, checks that this was noticed, and leaves it running."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from lclm_jax.config import RunPaths
from lclm_jax.drills.small_disk import SmallDisk
from lclm_jax.drills.trainer import DrillFailure, Trainer
from lclm_jax.train.logging.events import read_events
from lclm_jax.train.logging.records import read_metrics
from lclm_jax.train.supervise.watchdog import EXIT_RETRY

_TRIES = 5
Fault = Callable[[Trainer, random.Random, SmallDisk], None]


def kill_trainer(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """SIGKILL of the trainer and its workers, as when a machine is lost."""
    trainer.kill()
    trainer.start()


def kill_worker(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """SIGKILL of a data worker: the loader must be reopened, or the run must end with the status to restart it."""
    workers = trainer.workers()
    if not workers:
        raise DrillFailure("the trainer has no data worker to kill; set data.workers to 1 or more")
    draw.choice(workers).kill()
    noticed = "reopening the loader"
    _wait_until(lambda: noticed in trainer.printed() or trainer.processes[0].poll() is not None, trainer, noticed)
    _go_on(trainer)


def terminate(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """SIGTERM: save, end with the status that launchers requeue on."""
    trainer.processes[0].send_signal(signal.SIGTERM)
    _expect_status(trainer, EXIT_RETRY)
    trainer.start()


def truncate_checkpoint(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """The newest checkpoint loses the end of a file while the trainer is down."""
    _damage_newest(trainer, draw, lambda path: os.truncate(path, path.stat().st_size // 2))


def flip_checkpoint_bit(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """One bit of the newest checkpoint flips while the trainer is down."""
    _damage_newest(trainer, draw, lambda path: _flip(path, draw))


def fill_disk(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """No room for checkpoints until a save has failed, then room again."""
    before = _count(trainer, "save_failed")
    with disk.full(trainer.processes[0].pid):
        _wait_until(lambda: _count(trainer, "save_failed") > before, trainer, "a save to fail")
    _go_on(trainer)


def corrupt_shard(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """A prepared shard is damaged; it must be named, and training must resume once it is restored."""
    trainer.kill()
    shards = sorted(Path(RunPaths(trainer.config).prepared).rglob("train-*.array_record"))
    if not shards:
        raise DrillFailure(f"{RunPaths(trainer.config).prepared} has no shard to damage")
    shard = draw.choice(shards)
    intact = shard.read_bytes()
    _flip(shard, draw, bits=64)
    trainer.start()
    _expect_status(trainer, 1)
    shard.write_bytes(intact)
    if shard.name not in trainer.printed():
        raise DrillFailure(f"the damaged shard {shard.name} is not named: {trainer.printed()[-300:]}")
    trainer.start()


def nan_gradients(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """Gradients of a step were NaN (``faulty_train``): the update is skipped and counted."""
    bad = [record for record in read_metrics(trainer.folder / "metrics.jsonl") if record["nonfinite"]]
    if not bad or any(record[name] for record in bad for name in record if name.startswith("updated/")):
        raise DrillFailure(f"{len(bad)} steps with NaN gradients are on record, and none may have updated")


def hang(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """One of two processes stops without dying; the watchdog of the other must end the run."""
    trainer.kill()
    begun = _count(trainer, "begin")
    trainer.start(processes=2)
    _wait_until(lambda: _count(trainer, "begin") > begun, trainer, "two processes to start")
    trainer.wait_for_step(_going_on_from(trainer) + 3)
    trainer.processes[1].send_signal(signal.SIGSTOP)
    status = trainer.wait(0)
    trainer.kill()
    if status != EXIT_RETRY or "no progress" not in trainer.printed():
        raise DrillFailure(f"the process that waited ended with status {status}: {trainer.printed()[-300:]}")
    trainer.start()


def lose_disk(trainer: Trainer, draw: random.Random, disk: SmallDisk) -> None:
    """Two processes die, and one comes back with an empty disk: it must go on from the other's local copy."""
    trainer.kill()
    for _ in range(_TRIES):
        trainer.start(processes=2, local_copies=True)
        _wait_until(lambda: newest_copy(trainer) > trainer.saved()[-1], trainer, "local copies newer than a checkpoint")
        trainer.kill()
        if newest_copy(trainer) > trainer.saved()[-1]:  # no checkpoint was written in the meantime
            break
    else:
        raise DrillFailure(f"local copies were older than checkpoints {_TRIES} times; save checkpoints less often")
    lost = draw.randrange(2)
    for path in trainer.copies(lost):
        path.unlink()
    trainer.start(processes=2, local_copies=True)
    given = f"is taken from replica {1 - lost}, which has it whole"
    _wait_until(lambda: given in trainer.printed(), trainer, "the lost copy to come from the other replica")
    trainer.wait_for_step(_going_on_from(trainer) + 1)
    trainer.kill()
    trainer.start()


LOST_DISK = "lost disk of one of two"
"""This fault needs two replicas."""
FAULTS: dict[str, Fault] = {
    "kill -9 of the trainer": kill_trainer,
    "kill -9 of a data worker": kill_worker,
    "SIGTERM": terminate,
    "truncated checkpoint": truncate_checkpoint,
    "flipped bit in a checkpoint": flip_checkpoint_bit,
    "full disk": fill_disk,
    "corrupt data shard": corrupt_shard,
    "NaN gradients": nan_gradients,
    "hung process of two": hang,
    LOST_DISK: lose_disk,
}


def _damage_newest(trainer: Trainer, draw: random.Random, damage: Callable[[Path], None]) -> None:
    trainer.kill()
    newest = trainer.checkpoints / str(trainer.saved()[-1])
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 1000)
    damage(draw.choice(files))
    trainer.start()
    named = f"kept as {trainer.checkpoints / f'damaged-{newest.name}-'}"
    _wait_until(lambda: named in trainer.printed(), trainer, f"{newest} to be found damaged and set aside")


def _flip(path: Path, draw: random.Random, bits: int = 1) -> None:
    """Flip ``bits`` bits at random places of a file, in place."""
    content = bytearray(path.read_bytes())
    for _ in range(bits):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _go_on(trainer: Trainer) -> None:
    """Wait for one more step; a trainer that ended with the status to be restarted is restarted."""
    reached, end = trainer.step(), time.monotonic() + trainer.patience
    while trainer.step() <= reached and time.monotonic() < end:
        status = trainer.processes[0].poll()
        if status == 0:
            return
        if status is not None:
            trainer.kill()
            trainer.start()
            return
        time.sleep(0.05)


def _expect_status(trainer: Trainer, wanted: int) -> None:
    status = trainer.wait()
    trainer.kill()
    if status != wanted:
        raise DrillFailure(f"the trainer ended with status {status} instead of {wanted}: {trainer.printed()[-300:]}")


def _wait_until(condition: Callable[[], bool], trainer: Trainer, what: str) -> None:
    end = time.monotonic() + trainer.patience
    while True:
        ended = all(process.poll() is not None for process in trainer.processes)  # before it is asked the last time
        if condition():
            return
        if ended:
            status = trainer.processes[0].returncode
            raise DrillFailure(
                f"waited for {what}, and the trainer ended with status {status}: {trainer.printed()[-300:]}"
            )
        if time.monotonic() > end:
            raise DrillFailure(f"waited {trainer.patience:g} s for {what}; see {trainer.log()}")
        time.sleep(0.05)


def _count(trainer: Trainer, kind: str) -> int:
    return sum(event["kind"] == kind for event in read_events(trainer.folder))


def _going_on_from(trainer: Trainer) -> int:
    """Step that the last start resumed from."""
    begins = [event["step"] for event in read_events(trainer.folder) if event["kind"] == "begin"]
    return begins[-1] if begins else 0


def newest_copy(trainer: Trainer) -> int:
    """Step of the newest local copy that both of two processes have; -1 without one."""
    by_rank = ({int(path.name.split(".")[0]) for path in trainer.copies(rank)} for rank in range(2))
    return max(set.intersection(*by_rank), default=-1)

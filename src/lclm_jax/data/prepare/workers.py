"""Parts made in several processes. One that is killed is explained; the others go on, and what they make is kept.

Not ``ProcessPoolExecutor``: it does not say what a dead process had, and it ends the others.
"""

import multiprocessing
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn, cast

from lclm_jax.data.prepare.parts import Part
from lclm_jax.errors import LclmError
from lclm_jax.machine import memory_bytes

_POLITE_SECONDS = 5.0
_NAMES = 3


class WorkerError(LclmError):
    """Processes that were killed or crashed: what they had, and what to do."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    part: Part | None = None


def make_in_processes(
    parts: Sequence[Part], workers: int, start: Callable[..., Callable[[Part], object]], *arguments: object
) -> Iterator[Part]:
    """Each of ``parts`` when it is made.

    Args:
        parts: what to make.
        workers: number of processes.
        start: gives, in each process, the function that makes a part there.
        arguments: of ``start``.

    Raises:
        WorkerError: a process was killed or crashed; raised when the others have made all other parts.
        LclmError: as the function that makes a part.
    """
    waiting, deaths = list(reversed(parts)), list[str]()
    crew = [_hire(start, arguments) for _ in range(min(workers, len(parts)))]
    try:
        while waiting or any(worker.part for worker in crew):
            for worker in crew:
                if worker.part is None and waiting:
                    worker.part = waiting.pop()
                    _send(worker.pipe, worker.part)
            busy = [worker for worker in crew if worker.part is not None]
            if not busy:
                break  # all have died
            ready = wait([worker.pipe for worker in busy])
            for worker in [one for one in busy if one.pipe in ready]:
                part = cast(Part, worker.part)
                try:
                    failure = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    crew.remove(worker)
                    deaths.append(_death(worker, part))
                    continue
                if failure is not None:
                    raise failure
                worker.part = None
                yield part
    finally:
        _dismiss(crew)
    if deaths:
        left = f" {len(waiting):,} parts are not begun." if waiting else ""
        raise WorkerError(f"{'; '.join(deaths)}.{left} All other parts are kept: mend it and prepare again")


def _hire(start: Callable[..., Callable[[Part], object]], arguments: tuple[object, ...]) -> _Worker:
    spawn = multiprocessing.get_context("spawn")  # not forked: the trainer's process has threads
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, start, arguments), daemon=True)
    # Ctrl-C of a terminal goes to all its processes; a new one gets what is blocked here, and this one ends it.
    resource_tracker.ensure_running()  # which would unblock it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()  # so that the pipe ends with the process
    return _Worker(process, ours)


def _dismiss(crew: Sequence[_Worker]) -> None:
    """End processes: those that work are told to, and killed if they do not; the others see their pipe end."""
    for worker in crew:
        worker.pipe.close()
        if worker.part is not None:
            worker.process.terminate()
    for worker in crew:
        worker.process.join(_POLITE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _send(pipe: Connection, message: object) -> bool:
    """Whether there is another end that can get ``message``; a dead worker is found when it is waited for."""
    try:
        pipe.send(message)
    except (BrokenPipeError, ConnectionError):
        return False
    return True


def _death(worker: _Worker, part: Part) -> str:
    """What happened to ``worker``, which had ``part``."""
    worker.process.join(_POLITE_SECONDS)
    status = worker.process.exitcode or 0
    names = list(dict.fromkeys(entry.id for entry in part.entries))
    more = f" and {len(names) - _NAMES:,} more files" if len(names) > _NAMES else ""
    had = f"the worker that had {part.stem} ({', '.join(names[:_NAMES])}{more})"
    if status == -signal.SIGKILL:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return (
            f"{had} was killed by SIGKILL, most likely because memory ran out: it took up to {peak / 2**30:.1f} GiB of"
            f" {memory_bytes() / 2**30:.1f} GiB for all; use fewer --workers, give the job more memory,"
            " or divide long documents"
        )
    if status < 0:
        name = signal.Signals(-status).name
        return f"{had} was killed by {name}: a library crashed; move aside what it cannot read, or report it"
    return f"{had} ended with status {status}"


def _serve(pipe: Connection, start: Callable[..., Callable[[Part], object]], arguments: tuple[object, ...]) -> None:
    """Make the parts that come through ``pipe`` until it ends, which it also does with the other process."""
    signal.signal(signal.SIGTERM, _leave)
    make: Callable[[Part], object] | None = None
    while True:
        try:
            part = pipe.recv()
        except (EOFError, ConnectionError):
            return
        failure: Exception | None = None
        try:
            make = make or start(*arguments)
            make(part)
        except LclmError as error:
            failure = error
        except MemoryError:
            failure = WorkerError(f"out of memory making {part.stem}; use fewer --workers, or divide long documents")
        except Exception:  # noqa: BLE001 - a defect: the other process shows where, as not every exception can be sent
            failure = RuntimeError(f"making {part.stem} failed\n{traceback.format_exc()}")
        if not _send(pipe, failure):
            return


def _leave(*_: object) -> NoReturn:
    """End by an exception, so that what is half made is deleted."""
    sys.exit(1)

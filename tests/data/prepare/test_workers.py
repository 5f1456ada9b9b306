import os
import signal
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from lclm_jax.data.documents import Entry
from lclm_jax.data.prepare import workers
from lclm_jax.data.prepare.parts import Part
from lclm_jax.data.prepare.workers import WorkerError, make_in_processes
from lclm_jax.errors import LclmError
from lclm_jax.files import WriteError

PARTS = [
    Part("c", f"c/part-{i:05d}", ("train",), (Entry(f"{i}.txt", 1, ""), Entry("x.txt", 1, "")), i) for i in range(6)
]


def start(folder, faults):
    """In each process: note that a part is made, or go wrong as ``faults`` says for it."""

    def make(part):
        fault = faults.get(part.rank)
        if isinstance(fault, Exception):
            raise fault
        if fault == "sleep":
            (Path(folder) / "sleeps").touch()
            time.sleep(60)
        elif fault is not None:
            os.kill(os.getpid(), fault)
        (Path(folder) / str(part.rank)).touch()

    return make


def test_killed_workers_are_explained_and_the_others_go_on(tmp_path):
    made = []
    faults = {1: signal.SIGKILL, 2: signal.SIGSEGV}
    with pytest.raises(WorkerError) as raised:
        made.extend(make_in_processes(PARTS, 3, start, str(tmp_path), faults))
    message = str(raised.value)
    assert "the worker that had c/part-00001 (1.txt, x.txt) was killed by SIGKILL" in message
    assert "memory" in message and "use fewer --workers" in message
    assert "had c/part-00002 (2.txt, x.txt) was killed by SIGSEGV: a library crashed" in message
    assert message.endswith("All other parts are kept: mend it and prepare again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "3", "4", "5"]
    assert {part.rank for part in made} == {0, 3, 4, 5}


def test_a_call_that_is_given_up_leaves_no_process(tmp_path):
    made = make_in_processes(PARTS[:3], 2, start, str(tmp_path), {1: "sleep"})
    next(made)
    pids = [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(pids) == 2
    while not (tmp_path / "sleeps").exists():
        time.sleep(0.05)
    begun = time.monotonic()
    made.close()
    assert time.monotonic() - begun < 5
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.parametrize(
    ("fault", "kind", "word"),
    [
        (WriteError(28, "No space left on device", "/data"), WriteError, "cannot write /data: No space left"),
        (MemoryError(), LclmError, "out of memory making c/part-00001; use fewer --workers"),
        (KeyError("a bug"), RuntimeError, "KeyError: 'a bug'"),
    ],
)
def test_what_a_part_raises_reaches_the_call(tmp_path, monkeypatch, fault, kind, word):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # only a main thread may call it
    ours, theirs = Pipe()
    worker = threading.Thread(target=workers._serve, args=(theirs, start, (str(tmp_path), {1: fault})))
    worker.start()
    ours.send(PARTS[1])
    failure = ours.recv()
    assert isinstance(failure, kind) and word in str(failure)
    ours.send(PARTS[0])
    assert ours.recv() is None
    ours.close()
    worker.join(5)
    assert not worker.is_alive()

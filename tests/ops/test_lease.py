import os
import threading
import time

import pytest
import tensorstore as ts

from lclm_jax.ops import lease as module
from lclm_jax.ops.lease import NAME, Lease, Taken, lease_of
from lclm_jax.paths import StoreError

ELSEWHERE = {"host": "far", "machine": "another", "pid": 7, "began": 1.0}


@pytest.fixture
def store():
    return ts.KvStore.open({"driver": "memory"}).result()


def a_lease(store, seconds=0.4, renew=0.04):
    return Lease(store, "gs://b/run", seconds, renew)


def test_a_lock_is_held_renewed_and_given_back(store):
    with a_lease(store).hold():
        first = store.read(NAME).result().stamp.generation
        time.sleep(0.2)
        assert store.read(NAME).result().stamp.generation != first
    assert store.read(NAME).result().state == "missing"


def test_one_of_several_that_begin_at_once_gets_it(store, monkeypatch):
    monkeypatch.setattr(module, "_is_alive", lambda holder: None)
    held, refused, go = [], [], threading.Barrier(4)

    def work():
        go.wait()
        try:
            with a_lease(store, 30.0).hold():
                held.append(1)
                time.sleep(0.5)
        except Taken as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 3 and "is working in gs://b/run" in refused[0]


def test_a_holder_on_another_machine_that_renews_is_left_alone(store, monkeypatch):
    monkeypatch.setattr(module, "_this_process", lambda: ELSEWHERE)
    other = a_lease(store)
    monkeypatch.undo()
    with (
        other.hold(),
        pytest.raises(Taken, match=r"another process \(process 7 on far\) is working in"),
        a_lease(store).hold(),
    ):
        pass


def test_the_lock_of_a_holder_that_renews_no_more_is_taken_over_after_its_lease(store):
    store.write(NAME, '{"host": "far", "machine": "another", "pid": 7}').result()
    began = time.monotonic()
    with a_lease(store).hold():
        assert 0.4 < time.monotonic() - began < 5


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(store, monkeypatch):
    monkeypatch.setattr(module, "_this_process", lambda: {"machine": module._machine(), "pid": 2**22 + 1, "began": 1.0})
    store.write(NAME, module.json.dumps(module._this_process())).result()
    with a_lease(store, 1e6).hold():
        pass
    monkeypatch.setattr(module, "_this_process", lambda: {"machine": module._machine(), "pid": os.getpid(), "began": 1})
    store.write(NAME, module.json.dumps(module._this_process())).result()  # its number was given again
    with a_lease(store, 1e6).hold():
        pass


def test_a_living_process_of_this_machine_refuses_at_once(store):
    with a_lease(store, 1e6, 1e6).hold(), pytest.raises(Taken), a_lease(store, 1e6, 1e6).hold():
        pass


def test_who_has_lost_the_lock_is_told_and_leaves_that_of_its_successor(store):
    told = threading.Event()
    with a_lease(store).hold(lambda message: told.set()):
        store.write(NAME, '{"id": "successor"}').result()
        assert told.wait(5)
    assert store.read(NAME).result().value == b'{"id": "successor"}'


def test_a_store_without_conditional_writes_is_refused():
    with pytest.raises(StoreError, match=r"a run lies on a disk, or in gs:// or s3://"):
        lease_of("memory://run")

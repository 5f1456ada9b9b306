import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from lclm_jax.data.store.shard_cache import ShardCache
from lclm_jax.data.store.storage import Storage


def add(cache, name, size=10):
    return cache.hold(f"root/{name}", lambda: size, lambda path: path.write_bytes(b"x" * size))


def names(cache):
    return sorted(path.name for path in cache.root.glob("*/*"))


def aged(cache, *order):
    """Say that the copies were used in this order, long ago."""
    for age, name in enumerate(order):
        os.utime(cache.root / "root" / name, (age, age))


def test_without_a_bound_all_copies_stay(tmp_path):
    cache = ShardCache(tmp_path)
    for number in range(5):
        add(cache, str(number))
    assert names(cache) == ["0", "1", "2", "3", "4"]


def test_the_copies_used_longest_ago_give_way(tmp_path):
    cache = ShardCache(tmp_path, 35)
    for name in "abc":
        add(cache, name)
    aged(cache, "b", "c", "a")
    add(cache, "d")
    assert names(cache) == ["a", "c", "d"]
    aged(cache, "c", "a", "d")
    add(cache, "c")  # used, not fetched again
    add(cache, "e", 20)
    assert names(cache) == ["c", "e"]


def test_what_is_held_stays_even_above_the_bound(tmp_path):
    cache = ShardCache(tmp_path, 20)
    held = [add(cache, name) for name in "abc"]
    assert names(cache) == ["a", "b", "c"]
    del held[1]
    add(cache, "d")
    assert names(cache) == ["a", "c", "d"]


def test_a_half_made_copy_of_a_killed_process_gives_way(tmp_path):
    cache = ShardCache(tmp_path, 20)
    add(cache, "a")
    (tmp_path / "root" / "left.partial").write_bytes(b"x" * 10)
    aged(cache, "left.partial", "a")
    add(cache, "b")
    assert names(cache) == ["a", "b"]


def test_a_fetch_that_fails_leaves_nothing(tmp_path):
    def fetch(path):
        path.write_bytes(b"half")
        raise OSError("connection lost")

    cache = ShardCache(tmp_path, 20)
    with pytest.raises(OSError, match="connection lost"):
        cache.hold("root/a", lambda: 10, fetch)
    assert names(cache) == []


def size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:  # deleted or renamed by another process since it was listed
        return 0


def use(root, folder, seed, seen):
    storage = Storage(root, ShardCache(Path(folder), 25))
    for step in range(60):
        name = str((step * 7 + seed) % 6)
        held = storage.hold(name)
        assert held.path.read_bytes() == name.encode() * 10
        seen.put(sum(map(size, held.path.parent.iterdir())))
        del held


def test_processes_and_threads_share_a_cache(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for number in range(6):
        (store / str(number)).write_bytes(str(number).encode() * 10)
    context = multiprocessing.get_context("spawn")
    seen = context.Queue()
    arguments = [(store.as_uri(), str(tmp_path / "cache"), seed, seen) for seed in range(2)]
    workers = [context.Process(target=use, args=one) for one in arguments]
    workers.append(threading.Thread(target=use, args=(*arguments[0][:2], 2, seen)))
    for worker in workers:
        worker.start()
    sizes = [seen.get(timeout=60) for _ in range(3 * 60)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[:2]] == [0, 0]
    assert max(sizes) <= 25 + 3 * 10  # each may hold one and fetch another
    assert len(list((tmp_path / "cache").glob("*/*"))) <= 3

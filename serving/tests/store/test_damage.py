"""What disks, operators and other processes do to a store while it is used."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lclm_store import LatentStore, StoreError, database

SOURCE = Path(database.__file__).parents[1]
KEYS = [f"pooled/float32/f/{number}" for number in range(60)]


def vectors(seed, rows=8, width=64):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def fill(path):
    with LatentStore(path) as store:
        assert store.put_many([(key, vectors(n)) for n, key in enumerate(KEYS)], "float32") == len(KEYS)
        store.gc()


def sound(found):
    """Which entries came back; those that did are what was put in."""
    there = [array is not None for array in found]
    for number, array in enumerate(found):
        if array is not None:
            np.testing.assert_array_equal(array, vectors(number))
    return there


@pytest.fixture
def path(tmp_path):
    fill(tmp_path / "s")
    return tmp_path / "s"


def edit(path, statement, *values):
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "data = zeroblob(length(data))",
        "data = substr(data, 1, 100)",
        "data = x''",
        "rows = rows / 2, width = width * 2",
        "code = 'bfloat16'",
        "data = 'text'",
        "sum = x''",
        "width = 'wide'",
        "data = (SELECT data FROM latents WHERE key LIKE '%/5')",
    ],
)
def test_a_changed_row_is_a_miss_and_is_written_again(path, change):
    edit(path, f"UPDATE latents SET {change} WHERE key = ?", KEYS[3])
    edit(path, "DELETE FROM latents WHERE key = ?", KEYS[7])
    with LatentStore(path) as store:
        there = sound(store.get_many(KEYS))
        assert [n for n, found in enumerate(there) if not found] == [3, 7]
        assert store.stat().damaged == 1 and store.stat().misses == 2
        store.put_many([(KEYS[n], vectors(n)) for n in (3, 7)], "float32")
        assert all(sound(store.get_many(KEYS)))
        assert store.stat().entries == len(KEYS)
        assert store.verify() == []


def test_verify_names_damaged_entries_and_removes_them_on_request(path):
    edit(path, "UPDATE latents SET data = zeroblob(8) WHERE key = ?", KEYS[9])
    with LatentStore(path) as store:
        assert store.verify(remove=False) == [KEYS[9]]
        assert store.verify() == [KEYS[9]]
        assert store.verify() == []
        assert store.stat().entries == len(KEYS) - 1


def test_zeroed_pages_cost_the_entries_on_them(path):
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2 // 4096 * 4096
    whole[middle : middle + 2 * 4096] = bytes(2 * 4096)
    path.write_bytes(whole)
    with LatentStore(path) as store:
        there = sound(store.get_many(KEYS))
        assert 0 < sum(there) < len(KEYS)


@pytest.mark.parametrize("size", [0, 3000, 100_000])
def test_a_file_cut_short_while_it_is_open_gives_misses_and_no_error(path, size):
    with LatentStore(path) as store:
        sound(store.get_many(KEYS[:5]))
        os.truncate(path, size)
        sound(store.get_many(KEYS))
        store.put_many([("new", vectors(1))], "float32")
        store.get_many([*KEYS, "new"])
        if size == 0:  # an empty file is filled again
            store.put_many([("new", vectors(1))], "float32")
            np.testing.assert_array_equal(store.get_many(["new"])[0], vectors(1))


def test_a_file_cut_short_before_it_is_opened_is_refused(path):
    os.truncate(path, 100_000)
    with pytest.raises(StoreError, match="delete it"):
        LatentStore(path)
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])
    with pytest.raises(StoreError, match="delete it"):
        LatentStore(path)


def test_a_deleted_file_is_made_again(path):
    with LatentStore(path) as store:
        for file in path.parent.iterdir():
            file.unlink()
        store.get_many(KEYS)
        store.put_many([("new", vectors(1))], "float32")
        np.testing.assert_array_equal(store.get_many(["new"])[0], vectors(1))
    with LatentStore(path) as store:
        assert store.stat().entries == 1


def test_a_full_disk_loses_writes_and_nothing_else(path):
    with LatentStore(path) as store:
        (pages,) = store._database.rows("PRAGMA page_count")[0]
        store._database.rows(f"PRAGMA max_page_count={pages + 1}")
        assert store.put_many([(f"n{n}", vectors(n)) for n in range(100)], "float32") == 0
        assert store.stat().failed_writes == 100
        assert all(sound(store.get_many(KEYS)))
    with LatentStore(path) as store:
        assert store.stat().entries == len(KEYS)
        assert store.put_many([("n", vectors(0))]) == 1


def test_a_busy_store_is_a_lost_write(path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with LatentStore(path) as store:
        assert store.put_many([("n", vectors(0))]) == 0
        assert all(sound(store.get_many(KEYS)))
        holder.execute("ROLLBACK")
        assert store.put_many([("n", vectors(0))]) == 1
    holder.close()


def process(code, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


WRITER = """
import sys
import numpy as np
from lclm_store import LatentStore
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with LatentStore(path) as store:
    for number in range(count):
        array = np.full((4, 1000), number, np.float32)
        kept = store.put_many([(f"{who}/{number}/{i}", array) for i in range(10)], "float32")
        assert kept == 10, store.stat()
        assert all(found is not None for found in store.get_many([f"{who}/{number}/{i}" for i in range(10)]))
        if number == 3:
            print("going", flush=True)
"""


def test_kill_while_writing_leaves_whole_entries(tmp_path):
    path = tmp_path / "s"
    writer = process(WRITER, path, "a", 100_000)
    assert writer.stdout.readline() == b"going\n"
    time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with LatentStore(path) as store:
        entries = store.stat().entries
        assert entries >= 40 and entries % 10 == 0
        assert store.verify() == []
        assert store.put_many([("after", vectors(0))]) == 1


def test_several_processes_write_and_read_at_once(tmp_path):
    writers = [process(WRITER, tmp_path / "s", name, 8) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with LatentStore(tmp_path / "s") as store:
        assert store.stat().entries == 2 * 8 * 10
        assert store.verify() == []

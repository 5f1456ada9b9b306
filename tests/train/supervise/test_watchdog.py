import time

from lclm_jax.train.supervise.watchdog import Watchdog


def test_it_writes_the_stacks_and_ends_the_process(tmp_path, caplog):
    ended = []
    with Watchdog(0.2, tmp_path / "deep" / "stacks.txt", ended.append) as watchdog:
        for _ in range(4):
            time.sleep(0.1)
            watchdog.beat("at step 7")
        assert ended == []
        watchdog.beat("compiling", patience=5)
        time.sleep(0.5)
        assert ended == []
        watchdog.beat("waiting for the batch of step 8")
        time.sleep(0.5)
    assert ended == [75]
    assert "test_it_writes_the_stacks" in (tmp_path / "deep" / "stacks.txt").read_text()
    assert "process 0 of 1: no progress" in caplog.text and "waiting for the batch of step 8" in caplog.text


def test_without_a_limit_it_never_barks(tmp_path):
    with Watchdog(None, tmp_path / "stacks.txt", lambda status: 1 / 0) as watchdog:
        watchdog.beat("at step 1")
    assert not (tmp_path / "stacks.txt").exists()


def test_it_ends_the_process_where_no_stacks_can_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    ended = []
    with Watchdog(0.05, tmp_path / "file" / "stacks.txt", ended.append):
        end = time.monotonic() + 5
        while not ended and time.monotonic() < end:
            time.sleep(0.02)
    assert ended == [75]
    assert "stacks of all threads: cannot be written (" in caplog.text

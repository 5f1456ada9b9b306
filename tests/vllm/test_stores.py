"""Real servers with a store, and what can happen to it."""

import os
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.tiny_exports import PROMPTS, SPAN, tiny_export
from tests.vllm.server import DOCUMENT, Server, greedy, windows, work

from lclm_jax.drills.small_disk import SmallDisk
from lclm_jax.inference.generate import Generator
from lclm_store import LatentStore

OTHER = DOCUMENT.replace("line", "row")


def test_a_store_answers_for_a_server_that_was_killed(folder, generator, answers, tmp_path):
    store = tmp_path / "latents.db"
    prompt = SPAN.format(DOCUMENT) + "?"
    count = windows(generator, DOCUMENT)
    with Server(folder, tmp_path / "first", store=str(store)) as first:
        assert work(first, prompt) == (count, count, 0)
        wanted = first.ask(prompt)["token_ids"]
        killer = threading.Timer(0.05, lambda: os.killpg(first.process.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises((OSError, ValueError)):
            while True:
                first.ask(SPAN.format(os.urandom(40).hex()) + "?", max_tokens=1)
        killer.join()
    with sqlite3.connect(store) as damaged:
        keys = [key for (key,) in damaged.execute("SELECT key FROM latents ORDER BY created, key LIMIT 5")]
        damaged.execute("UPDATE latents SET data = zeroblob(length(data)) WHERE key = ?", keys[:1])
        damaged.execute("DELETE FROM latents WHERE key = ?", keys[1:2])
    with Server(folder, tmp_path / "second", store=str(store)) as second:
        requested, encoded, stored = work(second, prompt)
        assert (requested, encoded, stored) == (count, 2, count - 2)
        assert second.metrics()["store_damaged"] == 1
        assert second.ask(prompt)["token_ids"] == wanted
        os.truncate(store, 0)
        assert second.ask(PROMPTS["span"])["token_ids"] == answers["span"]
        for file in tmp_path.glob("latents.db*"):
            file.unlink()
        assert second.ask(PROMPTS["twin"])["token_ids"] == answers["twin"]
        assert second.healthy()


def test_two_servers_share_a_store_and_lose_writes_while_its_disk_is_full(folder, generator, tmp_path):
    prompts = [SPAN.format(f"{number} {DOCUMENT}") + "?" for number in range(4)]
    wanted = [greedy(generator, prompt) for prompt in prompts]
    count = windows(generator, DOCUMENT)
    with SmallDisk(tmp_path / "disk", 8 << 20) as disk:
        store = str(tmp_path / "disk" / "latents.db")
        one, two = (Server(folder, tmp_path / name, store=store) for name in ("one", "two"))
        with one, two:
            assert work(one, SPAN.format(DOCUMENT) + "?") == (count, count, 0)
            assert work(two, SPAN.format(DOCUMENT) + "?") == (count, 0, count)
            with ThreadPoolExecutor(8) as pool:  # both encode the same windows and write them at once
                found = list(pool.map(lambda pair: pair[0].ask(pair[1]), [(s, p) for p in prompts for s in (one, two)]))
            assert [choice["token_ids"] for choice in found] == [answer for answer in wanted for _ in range(2)]
            with disk.full(one.engine):
                requested, encoded, stored = work(one, SPAN.format(OTHER) + "?")
                assert (encoded, stored) == (requested, 0)
                assert one.ask(SPAN.format(OTHER) + "?")["token_ids"] == greedy(generator, SPAN.format(OTHER) + "?")
            assert one.metrics()["store_lost_writes"] > 0
            assert one.healthy() and two.healthy()
            again = SPAN.format(OTHER[::-1]) + "?"
            requested, encoded, _ = work(one, again)
            assert encoded == requested
            assert work(two, again) == (requested, 0, requested)  # there is room again
        with LatentStore(store) as opened:
            assert opened.verify() == []


def test_a_read_only_store_that_jax_filled_for_two_models(folder, generator, answers, tmp_path):
    store = tmp_path / "latents.db"
    for model in (tiny_export("untied", tmp_path / "untied"), folder):
        filled = Generator.from_folder(model, store=store)
        filled.encoder.pooled([filled.encoder_tokenizer.encode(DOCUMENT)])
        filled.encoder.store.store.close()
    with LatentStore(store) as opened:
        entries = opened.stat().entries
    count = windows(generator, DOCUMENT)
    server = Server(folder, tmp_path / "log", store={"path": str(store), "read_only": True})
    without = Server(folder, tmp_path / "second", store=str(folder / "config.json"))  # it is no store
    with server, without:
        assert work(server, SPAN.format(DOCUMENT) + "?") == (count, 0, count)
        assert server.ask(SPAN.format(DOCUMENT) + "?")["token_ids"] == greedy(generator, SPAN.format(DOCUMENT) + "?")
        requested, encoded, stored = work(server, SPAN.format(OTHER) + "?")
        assert (encoded, stored) == (requested, 0)
        assert server.metrics()["store_lost_writes"] == encoded
        for name in ("span", "chat"):
            assert server.ask(PROMPTS[name])["token_ids"] == answers[name]
        assert work(without, PROMPTS["long"])[2] == 0
        assert without.ask(PROMPTS["span"])["token_ids"] == answers["span"]
    with LatentStore(store) as opened:
        assert opened.stat().entries == entries

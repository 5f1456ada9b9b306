"""Training with its folder in a bucket is training with its folder on a disk, whatever happens to either."""

import json
import time

import numpy as np
import pytest
from tests.processes.launch import DEMO, launch, settings

from lclm_jax.config import load_config
from lclm_jax.ops.lease import NAME as LOCK
from lclm_jax.ops.lease import lease_of
from lclm_jax.ops.status import run_status
from lclm_jax.paths import StoreError, names_below, send_folder, to_path
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.checkpoints.step_folders import complete_steps
from lclm_jax.train.logging.records import MEASURED, read_metrics

BASE = "stages/base"
PATIENCE = 1200
"""Seconds that a command may take on a busy machine."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A finished run on a disk."""
    folder = tmp_path_factory.mktemp("disk") / "run"
    for command in (["data", "prepare"], ["train"]):
        assert launch(*command, DEMO, *settings(folder)).wait(PATIENCE)[0] == [0]
    return folder


def train(disk, url, *more, **variables):
    """Start training of the run of ``disk``, with its data, in ``url``."""
    places = (f"data.prepared={disk}/data", f"tokenizer={{decoder: {disk}/tokenizer, vocab_size: null}}")
    return launch("train", DEMO, *settings(url, *places, *more), **variables)


def wait_for(launched, condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert launched.processes[0].poll() is None, launched.wait(PATIENCE)
        assert time.monotonic() < end
        time.sleep(0.05)


def check_same(disk, url):
    """Losses and final parameters are those of ``disk``, bit for bit."""
    runs = [to_path(str(place)) / BASE for place in (disk, url)]
    steps = [
        [
            {key: value for key, value in record.items() if not key.endswith(MEASURED)}
            for record in read_metrics(run / "metrics.jsonl")
        ]
        for run in runs
    ]
    assert steps[0] == steps[1] and len(steps[0]) == 8
    mine, theirs = (LazyCheckpoint(run / "checkpoints" / "8") for run in runs)
    assert mine.shapes == theirs.shapes
    for name in mine.shapes:
        np.testing.assert_array_equal(mine.read(name), theirs.read(name))


def test_a_run_that_is_killed_goes_on_and_ends_like_one_on_a_disk(disk, gcs):
    bucket, root = gcs
    url = f"{root}/killed"
    first = train(disk, url)
    wait_for(first, lambda: f"killed/{BASE}/checkpoints/3/manifest.json" in bucket.names())
    first.processes[0].kill()
    first.wait(PATIENCE)
    assert f"killed/{LOCK}" in bucket.names()
    again = train(disk, url)
    assert again.wait(PATIENCE)[0] == [0]
    check_same(disk, url)
    assert f"killed/{LOCK}" not in bucket.names()
    status = run_status(load_config(to_path(url) / "config.yaml").model_copy(update={"run_dir": url}))
    assert status["state"] == "finished" and status["stages"]["base"]["restarts"] == 1


def test_a_second_process_is_refused_and_a_stop_is_a_stop(disk, gcs):
    bucket, root = gcs
    url = f"{root}/two"
    first = train(disk, url)
    wait_for(first, lambda: f"two/{LOCK}" in bucket.names())
    codes, texts = train(disk, url).wait(PATIENCE)
    assert codes == [1] and "another process" in texts[0] and "is working in gs://corpus/two" in texts[0]
    wait_for(first, lambda: f"two/{BASE}/events.jsonl.parts/000000.jsonl" in bucket.names())
    first.processes[0].terminate()
    codes, _ = first.wait(PATIENCE)
    assert codes == [75] and f"two/{LOCK}" not in bucket.names()
    assert complete_steps(to_path(url) / BASE / "checkpoints")


def test_a_store_that_fails_now_and_then_costs_nothing(disk, gcs):
    bucket, root = gcs
    url = f"{root}/faults"
    bucket.upload_faults += [503, None, "reset", None, None, 429, None, 500, 503, None] * 4
    codes, texts = train(disk, url).wait(PATIENCE)
    assert codes == [0], texts
    assert not bucket.upload_faults
    check_same(disk, url)


def test_a_run_that_is_copied_to_a_bucket_is_used_there_by_all_commands(disk, gcs, tmp_path):
    bucket, root = gcs
    url = f"{root}/copied"
    send_folder(disk, to_path(url))
    for command in (["export", url, f"{url}/model"], ["report", url]):
        codes, texts = launch(*command).wait(PATIENCE)
        assert codes == [0], texts
    names = {name.removeprefix("copied/") for name in bucket.names()}
    assert {"report.html", "model/model_config.json"} <= names
    done = launch("generate", f"{url}/model", "--prompt", "def", "--max-new-tokens", "2").wait(PATIENCE)
    assert done[0] == [0], done[1]
    places = (f"data.prepared={url}/data", f"tokenizer={{decoder: {url}/tokenizer, vocab_size: null}}")
    options = settings(tmp_path / "from", *places, "stages.base.steps=1")
    started = launch("train", DEMO, "--from", url, *options).wait(PATIENCE)
    assert started[0] == [0], started[1]


def test_a_bucket_that_is_missing_is_named(disk, gcs):
    codes, texts = train(disk, "gs://no-such-bucket/run").wait(PATIENCE)
    assert codes == [1] and "gs://no-such-bucket does not exist, or these credentials may not see it" in texts[0]
    assert "Traceback" not in texts[0]
    with pytest.raises(StoreError, match="does not exist"):
        lease_of(to_path("gs://no-such-bucket/run"))._acquire()


def test_of_two_conditional_writes_one_succeeds(gcs):
    _, root = gcs
    first, second = lease_of(to_path(f"{root}/conditional")), lease_of(to_path(f"{root}/conditional"))
    generation, holder = first._read()
    assert holder is None and second._read() == (generation, None)
    written = [lease._write(generation) for lease in (first, second)]
    assert written[0] is not None and written[1] is None
    assert json.loads((to_path(root) / "conditional" / LOCK).read_text())["id"] == first._own["id"]
    assert names_below(to_path(f"{root}/conditional")).keys() == {LOCK}

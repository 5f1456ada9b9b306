import json

import pytest

from lclm_jax.paths import to_path
from lclm_jax.train.logging import line_files
from lclm_jax.train.logging.events import Events, read_events
from lclm_jax.train.logging.metrics import MetricsLog
from lclm_jax.train.logging.records import read_metrics


@pytest.fixture
def folder(request):
    return to_path(f"memory://{request.node.name}")


def steps(folder):
    return [record["step"] for record in read_metrics(folder / "metrics.jsonl")]


def test_metrics_in_a_bucket_are_those_of_an_uninterrupted_run(folder, monkeypatch):
    monkeypatch.setattr(line_files, "PART_BYTES", 40)
    log = MetricsLog(folder / "metrics.jsonl", 0)
    for step in range(10):
        log.write({"step": step, "loss": step / 2})
        log.flush()
    log.close()
    assert steps(folder) == list(range(10)) and len(list((folder / "metrics.jsonl.parts").iterdir())) > 3
    again = MetricsLog(folder / "metrics.jsonl", 4)
    assert steps(folder) == [0, 1, 2, 3]
    again.write({"step": 4})
    assert steps(folder) == [0, 1, 2, 3]  # until it is sent
    again.close()
    MetricsLog(folder / "metrics.jsonl", 5).close()
    assert steps(folder) == [0, 1, 2, 3, 4]


def test_lines_are_sent_without_being_asked(folder, monkeypatch):
    monkeypatch.setattr(line_files, "FLUSH_SECONDS", 0.01)
    log = MetricsLog(folder / "metrics.jsonl", 0)
    log.write({"step": 0})
    for _ in range(200):
        if steps(folder) == [0]:
            break
        line_files.threading.Event().wait(0.01)
    assert steps(folder) == [0]
    log.close()


def test_a_bucket_that_refuses_costs_no_line_once_it_answers_again(folder, monkeypatch):
    log, events = MetricsLog(folder / "metrics.jsonl", 0), Events(folder)
    with monkeypatch.context() as broken:

        def refuse(self, *_, **__):
            raise PermissionError("403")

        broken.setattr(type(folder.fs), "pipe_file", refuse)
        broken.setattr(type(folder), "write_bytes", refuse)
        log.write({"step": 0})
        log.flush()
        events.write("save", step=0)
    assert steps(folder) == []
    events.write("save", step=1)
    log.close()
    assert steps(folder) == [0] and [event["step"] for event in read_events(folder)] == [0, 1]


def test_events_of_every_start_stay_in_order(folder):
    for start in range(3):
        events = Events(folder)
        events.write("begin", step=start)
        events.write("end", step=start)
    assert [(event["kind"], event["step"]) for event in read_events(folder)] == [
        (kind, start) for start in range(3) for kind in ("begin", "end")
    ]


def test_a_file_that_was_copied_to_a_bucket_goes_on(folder):
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)))
    log = MetricsLog(folder / "metrics.jsonl", 3)
    log.write({"step": 3, "new": True})
    log.close()
    assert steps(folder) == [0, 1, 2, 3]

import io
import logging

import pytest
from rich.console import Console

from lclm_jax.train.progress import BarReporter, LineReporter, format_seconds


def record(step, loss=2.0):
    return {
        "step": step,
        "loss_nats": loss,
        "learning_rate/adapter": 1e-3,
        "raw_tokens": 100,
        "wall_seconds": 0.5,
        "compile_seconds": 0.0,
        "decoder_fill": 0.9,
        "skipped": 0.0,
        "nonfinite": float(loss is None),
    }


def test_lines_are_means_over_the_steps_between(caplog):
    reporter = LineReporter(every=2)
    with caplog.at_level(logging.INFO, logger="lclm_jax"):
        reporter.start("stage0", 2, 7)
        for step, loss in enumerate((1.0, 3.0, None, None, 5.0), start=2):
            reporter.step(record(step, loss))
    assert caplog.messages == [
        "stage0: 7 steps, from step 2",
        "stage0 4/7 | loss 2.0000 nats | 200 raw tok/s | fill 0.90 | ETA 0:00:02 | lr adapter=1.0e-03",
        "stage0 6/7 | loss not finite | 200 raw tok/s | fill 0.90 | 2 skipped | ETA 0:00:00 | lr adapter=1.0e-03",
        "stage0 7/7 | loss 5.0000 nats | 200 raw tok/s | fill 0.90 | ETA 0:00:00 | lr adapter=1.0e-03",
    ]


def test_lines_tell_objectives_apart_by_tokens(caplog):
    reporter = LineReporter(every=2)
    with caplog.at_level(logging.INFO, logger="lclm_jax"):
        reporter.start("stage0", 0, 2)
        first = {"loss_nats/cpt": 1.0, "loss_tokens/cpt": 30, "loss_nats/chat": None, "loss_tokens/chat": 0}
        second = {"loss_nats/cpt": 2.0, "loss_tokens/cpt": 10, "loss_nats/chat": 4.0, "loss_tokens/chat": 5}
        reporter.step(record(0, 1.0) | first)
        reporter.step(record(1, 3.0) | second)
    assert "loss 2.0000 nats (cpt 1.2500, chat 4.0000) |" in caplog.messages[-1]


def test_a_bar_shows_loss_and_rates():
    output = io.StringIO()
    reporter = BarReporter(Console(file=output, force_terminal=True, width=140), interval_seconds=0)
    reporter.start("stage0", 0, 2)
    reporter.step(record(0))
    reporter.step(record(1, loss=4.0))
    reporter.finish()
    assert "2/2" in output.getvalue() and "loss 4.0000 nats" in output.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_shows_every_number(width):
    output = io.StringIO()
    reporter = BarReporter(Console(file=output, force_terminal=True, width=width), interval_seconds=0)
    rates = {f"learning_rate/{part}": 1e-3 for part in ("adapter", "encoder", "decoder", "memory_rows")}
    reporter.start("base_varied", 0, 1800)
    reporter.step(record(1233) | rates | {"learning_rate/decoder": 1e-5})
    reporter.finish()
    shown = output.getvalue()
    for text in ("base_varied", "1234/1800", "2.0000", "200", "adapter,encoder,memory_rows=1.0e-03", "decoder=1.0e-05"):
        assert text in shown
    assert "…" not in shown


def test_format_seconds():
    assert [format_seconds(seconds) for seconds in (0.4, 61, 3723.4)] == ["0:00:00", "0:01:01", "1:02:03"]

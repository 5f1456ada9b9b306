import io
import logging

import pytest
from rich.console import Console

from lclm_jax.train.logging.log_summary import format_seconds
from lclm_jax.train.logging.progress import LogReporter, ProgressBarReporter


def record(step, loss=2.0):
    return {
        "step": step,
        "loss_nats": loss,
        "learning_rate/adapter": 1e-3,
        "grad_norm/adapter": 0.25 if loss is not None else None,
        "update_norm/adapter": 2e-4,
        "raw_tokens_per_s": 300.0,
        "decoder_tokens_per_s": 100.0,
        "encoder_tokens_per_s": 260.0,
        "wall_seconds": 0.5,
        "data_wait_seconds": 0.05,
        "decoder_fill": 0.9,
        "encoder_fill": 0.8,
        "skipped": 0.0,
        "nonfinite": float(loss is None),
    }


def told(caplog, every, first, last, records, probe=None):
    reporter = LogReporter(every)
    with caplog.at_level(logging.INFO, logger="lclm_jax"):
        reporter.start("stage0", first, last)
        if probe:
            reporter.probe(first, probe)
        for one in records:
            reporter.step(one)
    return caplog.messages[1 + bool(probe) :]


def test_lines_are_means_over_the_steps_between(caplog):
    losses = enumerate((1.0, 3.0, None, None, 5.0), start=2)
    heads = [message.splitlines()[0] for message in told(caplog, 2, 2, 7, [record(*one) for one in losses])]
    assert caplog.messages[0] == "stage0: 7 steps, from step 2"
    assert heads == [
        "stage0 4/7 | loss 2.0000 nats | ETA 0:00:02",
        "stage0 6/7 | loss not finite | 2 skipped | ETA 0:00:00",
        "stage0 7/7 | loss 5.0000 nats | ETA 0:00:00",
    ]


def test_a_line_of_speed_and_one_of_the_parts(caplog):
    compiled = record(0) | {"wall_seconds": 4.5, "compile_seconds": 4.0, "memory_bytes": 3e9}
    mfu = {"encoder_mfu": 0.1, "adapter_mfu": 0.001, "decoder_mfu": 0.3, "mfu": 0.401}
    (message,) = told(caplog, 2, 0, 2, [compiled | mfu, record(1, None) | mfu])
    assert message.splitlines()[1:] == [
        "  300 raw, 100 decoder, 260 encoder tok/s | MFU 40.1 % (encoder 10.0, adapter 0.1, decoder 30.0)"
        " | fill decoder 0.90, encoder 0.80 | data wait 2.0 % | 3.00 GB",
        "  adapter lr 1.0e-03 grad not finite update 2.0e-04",
    ]


def test_the_gain_of_the_last_probe_is_told(caplog):
    probe = {"context_nats/none": 3.0, "context_nats/latents": 2.75, "context_nats/raw": 2.5, "loss_nats/cpt": 2.0}
    message = told(caplog, 1, 0, 4, [record(0), record(1)], probe)[-1]
    assert "stage0 2/4 | loss 2.0000 nats | context gain 0.250 of 0.500 | ETA" in message


def test_lines_tell_objectives_apart_by_tokens(caplog):
    reporter = LogReporter(every=2)
    with caplog.at_level(logging.INFO, logger="lclm_jax"):
        reporter.start("stage0", 0, 2)
        first = {"loss_nats/cpt": 1.0, "loss_tokens/cpt": 30, "loss_nats/chat": None, "loss_tokens/chat": 0}
        second = {"loss_nats/cpt": 2.0, "loss_tokens/cpt": 10, "loss_nats/chat": 4.0, "loss_tokens/chat": 5}
        reporter.step(record(0, 1.0) | first)
        reporter.step(record(1, 3.0) | second)
    assert "loss 2.0000 nats (cpt 1.2500, chat 4.0000) |" in caplog.messages[-1]


def test_a_bar_shows_loss_and_rates():
    output = io.StringIO()
    reporter = ProgressBarReporter(Console(file=output, force_terminal=True, width=140), interval_seconds=0)
    reporter.start("stage0", 0, 2)
    reporter.step(record(0))
    reporter.step(record(1, loss=4.0))
    reporter.finish()
    for text in ("2/2", "loss 4.0000 nats", "260 encoder tok/s", "grad 2.5e-01"):
        assert text in output.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_shows_every_number(width):
    output = io.StringIO()
    reporter = ProgressBarReporter(Console(file=output, force_terminal=True, width=width), interval_seconds=0)
    rates = {f"learning_rate/{part}": 1e-3 for part in ("adapter", "encoder", "decoder", "memory_rows")}
    reporter.start("base_varied", 0, 1800)
    reporter.step(record(1233) | rates | {"learning_rate/decoder": 1e-5})
    reporter.finish()
    shown = output.getvalue()
    for text in ("base_varied", "1234/1800", "2.0000", "300 raw", "memory_rows", "1.0e-03", "1.0e-05", "data wait"):
        assert text in shown
    assert "…" not in shown


def test_format_seconds():
    assert [format_seconds(seconds) for seconds in (0.4, 61, 3723.4)] == ["0:00:00", "0:01:01", "1:02:03"]

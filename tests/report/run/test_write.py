"""``lclm report``: one file, no network, several runs side by side."""

import re

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.report.run.write import write_page

BEGIN = {
    "kind": "begin", "time": 1000.0, "step": 0, "redone_steps": 0, "redone_seconds": 0,
    "environment": {"jax": "0.0.7", "devices": "8 x Abacus"},
}  # fmt: skip


def test_a_page_of_two_runs(run, step, tmp_path):
    events = [BEGIN, {"kind": "probe", "time": 1003.0, "seconds": 2.0, "final": True}]
    records = [step(k, 2.0 / (k + 1), grad_norm=1.0, raw_tokens_per_s=50.0 + k) for k in range(60)]
    for record in records[1:]:
        record |= {"loss_nats/cpt": 1.0, "loss_nats/chat": None if record["step"] % 2 else 2.0}
    last = {"loss_nats/cpt": None, "loss_nats/chat": None}
    config = run([*records, step(60, None, raw_tokens_per_s=3.0, **last)], events, saved=[10])
    (tmp_path / "stages" / "one" / "probes.jsonl").write_text('{"step": 9, "context_nats/raw": 1.5}\n')
    (tmp_path / "generations.json").write_text(
        '[{"task": "repeat", "id": "f", "prompt": "<b>say</b>", "answer": "said & done", "expected": null}]'
    )
    other = config.model_copy(update={"name": "other", "seed": 7})
    write_page([config, other], tmp_path / "out" / "page.html")
    page = (tmp_path / "out" / "page.html").read_text()
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert not re.search(r'(href|src)="(?!#|data:)', page), "the page asks for another file"
    assert page.count("<img") >= 5 and 'alt="context_nats/raw"' in page
    assert 'alt="loss of cpt (nats)"' in page and 'alt="loss of chat (nats)"' in page
    assert "watched and other" in page and "8 x Abacus" in page
    assert "&lt;b&gt;say&lt;/b&gt;" in page and "said &amp; done" in page
    assert re.search(r"<td>seed</td>.*>0<.*>7<", page)


def test_a_run_without_a_step_is_refused(run, tmp_path):
    with pytest.raises(LclmError, match="has no metrics of any step; train first"):
        write_page([run([], [])], tmp_path / "page.html")

"""Running a suite with workers that have no model: resuming, failures, costs, what the report says."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.report.suite.write import terminal_rows, write_report
from lclm_jax.suite import run, summary
from lclm_jax.suite.run import results_of, run_suite
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import SuiteConfig
from lclm_jax.suite.store import Journal
from lclm_jax.suite.systems import process

ROOT = Path(__file__).parents[2]
SAMPLES = [
    Sample(
        f"t/{number}",
        "t",
        f"a{number} b{number}",
        "which?",
        (f"a{number}", f"b{number}"),
        gold="x",
        length=64,
        depth=number / 4,
        document=f"d{number // 2}",
        extra={"scorer": "all_parts"},
    )
    for number in range(4)
]


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Three systems, the last two compared with the first."""
    systems = {
        name: {"kind": "lclm", "model": "m", "context": context, "timeout_seconds": 20}
        for name, context in (("raw", "raw"), ("latents", "memory"), ("without", "none"))
    }
    monkeypatch.setitem(process._MODULES, "lclm", "tests.suite.workers")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    samples = list(SAMPLES)
    monkeypatch.setattr(run, "prepare_samples", lambda tree: _write(tree, samples))
    tree = SuiteConfig(
        name="s",
        out=str(tmp_path),
        tasks={"t": {"kind": "gsm8k", "data": "x"}},
        systems=systems,
        costs={"lengths": [40], "repeats": 1, "new_tokens": 3},
        published=[{"system": "LCLM", "task": "t", "value": 9.5, "source": "a paper"}],
    )
    return tree, samples


def _write(tree, samples):
    lines = [{"tasks": "k"}, *(one.as_json() for one in samples)]
    Path(tree.out, "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return samples


def quiet(what, done, total):
    pass


def raw_alone(tree):
    """The first system, without costs: one process to start instead of nine."""
    none = tree.costs.model_copy(update={"lengths": ()})
    return tree.model_copy(update={"systems": {"raw": tree.systems["raw"]}, "costs": none})


def test_scores_shares_costs_and_report(suite, tmp_path):
    tree, _ = suite
    run_suite(tree, quiet)
    found = write_report(tree)
    raw, latents, without = (found.row(name, "t") for name in ("raw", "latents", "without"))
    assert [row.score.value for row in (raw, latents, without)] == [1, 0.5, 0]
    assert (latents.difference.value, latents.difference.documents, latents.verdict) == (-0.5, 2, "worse")
    # 5 nats without context, 2 with latents, 1 raw: (5 - 2) / (5 - 1).
    assert latents.recovered.value == 0.75
    assert latents.gain_is_known
    assert raw.recovered is None
    assert latents.nats_per_token.value == 1.0
    # 5 characters in ceil(5 / 4) = 2 positions.
    assert (latents.positions, latents.effective_ratio) == (2, 2.5)
    assert (without.cut, without.failed, latents.cut) == (4, 0, 0)
    assert latents.tokens_per_s == 2.0
    assert [cell.depth for cell in found.cells if cell.system == "raw"] == [0.0, 0.2, 0.5, 0.7]
    costs = {one["system"]: one for one in found.costs}
    assert costs["latents"]["ttft_seconds"] == costs["latents"]["stored_ttft_seconds"] == 0.5
    assert costs["raw"]["peak_bytes"] == 5_000_000
    markdown = (tmp_path / "report/report.md").read_text()
    assert "| `latents` | 50.0 [50.0, 50.0] |" in markdown
    assert "| `latents` | 0.75 [0.75, 0.75] |" in markdown
    assert "4 of 12 answers were cut" in markdown
    assert "| LCLM | t | 9.5 | a paper |" in markdown
    assert (tmp_path / "report/plots/ttft.png").exists()
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png") == 3
    assert json.loads((tmp_path / "report/results.json").read_text())["rows"][1]["recovered"]["value"] == 0.75
    assert terminal_rows(found)[1][1][:5] == ["latents", "t", "4", "50.0 [50.0, 50.0]", "-"]


def test_goes_on_after_a_kill_and_measures_only_what_changed(suite):
    tree, samples = suite
    tree = raw_alone(tree)
    run_suite(tree, quiet)
    path = results_of(tree, "raw")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:30])  # killed in the middle of a line
    samples[0] = Sample.from_json(samples[0].as_json() | {"question": "who?"})
    told = []
    run_suite(tree, lambda what, done, total: told.append(done))
    assert told == [1, 2, 3, 4]
    assert path.read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    assert summary.summarise(tree).row("raw", "t").samples == 4
    path.write_bytes(b"nonsense\n")
    with pytest.raises(LclmError, match=r"raw.jsonl, line 1: no record of a suite"):
        run_suite(tree, quiet)


def test_failures_end_a_system_that_never_answered(suite):
    tree, samples = suite
    tree = raw_alone(tree)
    failing = [replace(SAMPLES[0], id=f"t/f{number}", question="fails?") for number in range(6)]
    samples[:] = failing
    with pytest.raises(LclmError, match=r"system raw: the first 5 samples all failed: .*bad"):
        run_suite(tree, quiet)
    samples[:] = [*failing, SAMPLES[1]]
    results_of(tree, "raw").unlink()
    Path(tree.out, "results").mkdir(exist_ok=True)
    samples.sort(key=lambda one: one.id)
    run_suite(tree, quiet)
    seen = len(Journal(results_of(tree, "raw")).records)
    run_suite(tree, quiet)  # the six that failed are all that is tried, and fail again
    assert len(Journal(results_of(tree, "raw")).records) == seen == 7


def test_a_failed_sample_is_a_line_and_is_tried_again(suite):
    tree, samples = suite
    tree = raw_alone(tree)
    samples[1] = Sample.from_json(samples[1].as_json() | {"question": "fails"})
    run_suite(tree, quiet)
    found = write_report(tree)
    assert found.failures == [("raw", "t/1", "ValueError: bad sample")]
    assert found.row("raw", "t").failed == 1
    assert found.row("raw", "t").samples == 3
    assert "ValueError: bad sample" in Path(tree.out, "report/report.md").read_text()
    before = len(Journal(results_of(tree, "raw")).records)
    run_suite(tree, quiet)
    assert len(Journal(results_of(tree, "raw")).records) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "refused"}, "system raw: there is no such model"),
        ({"model": "crash"}, "system raw ended with status 1: out of memory"),
        ({"python": "/no/python"}, "system raw: cannot run /no/python"),
    ],
)
def test_systems_that_cannot_start_are_named_first(suite, changes, message):
    tree, _ = suite
    broken = tree.systems["raw"].model_copy(update=changes)
    tree = tree.model_copy(update={"systems": {"raw": broken}})
    with pytest.raises(LclmError, match=message):
        run_suite(tree, quiet)
    assert not results_of(tree, "raw").exists()


def test_lengths_beyond_the_model_are_named_first(suite):
    tree, samples = suite
    samples[2] = Sample.from_json(samples[2].as_json() | {"context": "x " * 60})
    with pytest.raises(
        LclmError, match=r"system raw: t takes 120 positions and 64 new tokens \(t/2\); its model holds 100"
    ):
        run_suite(tree, quiet)


def test_a_worker_that_dies_or_hangs_is_named(suite):
    tree, samples = suite
    samples[1] = Sample.from_json(samples[1].as_json() | {"question": "dies"})
    with pytest.raises(LclmError, match="system raw ended with status 3: about to die"):
        run_suite(tree, quiet)
    assert len(Journal(results_of(tree, "raw")).records) == 1
    system = tree.systems["raw"].model_copy(update={"timeout_seconds": 0.1})
    with process.Worker("raw", system, Path(tree.out) / "log") as worker:
        worker._timeout = -39.8  # of which half as much again and a minute make 0.3 s
        request = process.request_of(samples[0], True, True) | {"question": "sleeps"}
        with pytest.raises(LclmError, match="system raw did not answer in 0 s and was ended"):
            worker.ask(request)


def test_two_processes_do_not_run_one_suite(suite):
    tree, _ = suite
    with run._alone(Path(tree.out)), pytest.raises(LclmError, match="another process runs the suite"):
        run_suite(tree, quiet)


def test_workers_need_no_package_of_ours(suite):
    """What the workers of other environments import is the standard library alone."""
    import subprocess

    code = "import sys, lclm_jax.suite.systems.openai_worker, lclm_jax.suite.systems.kvpress_worker;"
    code += "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.stdout.strip() == "['__main__', 'lclm_jax']" or done.stdout.strip() == "['lclm_jax']", done.stderr

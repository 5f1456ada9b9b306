"""The ablation tutorial, in a file of its own so that it runs beside the others."""

from tests.docs.tutorial import ROOT, run, workplace


def test_ablation(tmp_path):
    printed = run(ROOT / "docs" / "tutorials" / "ablation.md", workplace(tmp_path))
    assert "model FLOPs" in printed[1], "the plan"
    assert printed[-1].startswith("# "), "the report begins with its title"
    report = (tmp_path / "runs/ablate/try/report/report.md").read_text(encoding="utf-8")
    assert "mask=bidirectional" in report

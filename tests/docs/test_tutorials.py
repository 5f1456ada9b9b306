"""The tutorials' commands, as printed, on the small configurations that the tutorials themselves show."""

import pytest
from tests.docs.tutorial import ROOT, blocks, run, workplace

TUTORIALS = ROOT / "docs" / "tutorials"


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """The folder of the first tutorial after its last command, and what the commands printed."""
    folder = workplace(tmp_path_factory.mktemp("own-data"))
    return folder, run(TUTORIALS / "own-data.md", folder)


def test_own_data(own_data):
    folder, _ = own_data
    for name in ("rows.html", "runs/rehearsal/report.html", "runs/rehearsal/eval.json", "model/model_config.json"):
        assert (folder / name).exists(), name
    assert list(folder.glob("runs/rehearsal/stages/stage2/checkpoints/20"))


def test_pytorch_starts_from_the_export_of_the_first(own_data):
    folder, _ = own_data
    page = TUTORIALS / "pytorch.md"
    printed = run(page, folder)
    python, generated = printed[-2:]
    assert [block.language for block in blocks(page)][-2:] == ["python", "bash"]
    assert "largest difference from lclm encode" in python
    answer = python[python.index("\n") + 1 :]
    assert answer.strip() == generated.strip(), "transformers and lclm generate answer differently"


def test_every_tutorial_is_listed():
    index = (TUTORIALS / "index.md").read_text(encoding="utf-8")
    for page in TUTORIALS.glob("*.md"):
        assert page.stem == "index" or f"({page.name})" in index

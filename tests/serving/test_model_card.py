"""The lines of an export's model card do what it says."""

import re

import pytest
from click.testing import CliRunner
from tests.tiny_exports import tiny_export

from lclm_jax.cli.main import cli
from lclm_jax.interop.runs import export_folder


@pytest.fixture
def model(tmp_path):
    """An export with its card."""
    export_folder(tiny_export("mean", tmp_path / "tiny"), tmp_path / "model")
    return tmp_path / "model"


def card_of(model):
    return (model / "README.md").read_text()


def run_transformers_lines(model, capsys):
    card = card_of(model)
    block = re.search(r"(?:^    .*\n|^\n)+", card[card.index("In transformers") :], re.MULTILINE).group()
    lines = "\n".join(line[4:] for line in block.splitlines()).replace("FOLDER", str(model))
    exec(compile(lines.replace("max_new_tokens=64", "max_new_tokens=8"), "card", "exec"), {})
    return capsys.readouterr().out


def test_the_lines_for_transformers_answer(model, capsys):
    assert "What does it say?" in run_transformers_lines(model, capsys)
    assert "    vllm serve FOLDER\n" in card_of(model)


@pytest.mark.slow
def test_the_line_for_jax_answers_alike(model, capsys):
    printed = run_transformers_lines(model, capsys)
    command, prompt = re.search(r"^    lclm (generate) FOLDER --prompt '(.*)'$", card_of(model), re.MULTILINE).groups()
    arguments = [command, str(model), "--prompt", prompt, "--max-new-tokens", "8"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    answer = done.output.removesuffix("\n")
    assert answer and answer in printed

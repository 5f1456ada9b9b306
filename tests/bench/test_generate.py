import json

import pytest
from click.testing import CliRunner
from tests.tiny_exports import tiny_export

from lclm_jax.cli.main import cli

pytest.importorskip("transformers")


def test_both_sides_give_the_same_tokens_and_are_timed(tmp_path):
    folder = tiny_export("mean", tmp_path / "model")
    out = tmp_path / "out.json"
    command = [
        "bench",
        "generate",
        str(folder),
        "--length",
        "24",
        "--batch",
        "2",
        "--new-tokens",
        "5",
        "--repeats",
        "2",
    ]
    result = CliRunner().invoke(cli, [*command, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "100% of the tokens are equal" in result.output and "transformers" in result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["positions"] == 24 and row["same_tokens"] == 1
    assert len(row["ratios"]) == 2 and min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
    for side in ("ours", "transformers"):
        assert row[side]["tokens_per_s"] == pytest.approx(10 / row[side]["seconds"])

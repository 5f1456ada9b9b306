"""House rules of this distribution: sizes, and what its packages may import."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
NEVER = {"pickle", "jax", "flax", "lclm_jax"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_and_sizes(path):
    text = path.read_text(encoding="utf-8")
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & NEVER
    if path.is_relative_to(SOURCE / "lclm_store"):
        assert tops <= {*sys.stdlib_module_names, "numpy", "lclm_store"}
    if path.is_relative_to(SOURCE / "lclm_agent"):
        assert tops <= {*sys.stdlib_module_names, "httpx2", "mcp", "lclm_store", "lclm_agent"}
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno}"

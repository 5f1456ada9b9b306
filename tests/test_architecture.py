"""House rules that a reader cannot check by eye: import direction, sizes, what must never be imported."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lclm_jax"
FILES = sorted(SOURCE.rglob("*.py"))

# room -> rooms it may import; a room may always import itself.
ALLOWED = {
    "config": set(),
    "batch": {"config"},
    "kernels": set(),
    "parallel": {"config", "batch"},
    "text": {"config"},
    "data": {"config", "batch", "text"},
    "model": {"config", "batch", "kernels", "parallel"},
    "train": {"config", "batch", "text", "data", "model", "parallel"},
    "interop": {"config", "batch", "text", "data", "model", "parallel", "train"},
    "inference": {"config", "batch", "text", "data", "model", "parallel", "train", "interop"},
    "eval": {"config", "batch", "text", "data", "model", "parallel", "train", "interop", "inference"},
}
EVERYTHING = set(ALLOWED) | {"ops", "pipeline", "plan", "bench"}
ALLOWED["ops"] = set(ALLOWED)
ALLOWED["pipeline"] = set(ALLOWED) | {"ops"}
ALLOWED["plan"] = {"config", "batch", "kernels", "model", "parallel", "train"}
ALLOWED["bench"] = {*ALLOWED["interop"], "interop", "kernels", "plan"}
ALLOWED["ablate"] = EVERYTHING - {"plan", "bench"}
ALLOWED["cli"] = EVERYTHING | {"ablate"}
ALLOWED["__main__"] = {"cli"}
FORBIDDEN_MODULES = {"pickle", "torch", "transformers", "dill", "cloudpickle", "joblib"}
# file -> what it alone may import. The PyTorch project's vLLM script reads a .pt file, which only torch writes; the
# file writes one on request (extra [torch]), imports torch inside its functions, and never reads one. The measurements
# beside PyTorch need PyTorch, if it is there, and import it inside functions as well.
EXCEPTIONS = {
    "inference/torch_file.py": {"torch"},
    "bench/torch_attention.py": {"torch"},
    "bench/torch_step.py": {"torch", "transformers"},
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    allowed = ALLOWED[room] | {room}
    forbidden = FORBIDDEN_MODULES - EXCEPTIONS.get(str(path.relative_to(SOURCE)), set())
    for name in imports_of(ast.parse(path.read_text())):
        parts = name.split(".")
        assert parts[0] not in forbidden, f"{path}: imports {name}"
        assert name != "flax.nnx", f"{path}: imports {name}"
        if parts[0] == "lclm_jax" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{path}: {room} may not import {parts[1]}; see docs/architecture.md"


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_imported_when_called(name):
    tree = ast.parse((SOURCE / name).read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {found.split(".")[0] for found in imports_of(top)} & EXCEPTIONS[name]
    assert "torch.load" not in (SOURCE / name).read_text(), "reading a pickle can run any code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_sizes(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{path} is over {MAX_FILE_LINES} lines: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines: split it"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            assert count <= MAX_PARAMETERS, f"{path}:{node.lineno} {node.name} takes {count} parameters"


def test_only_parallel_constrains_shardings():
    for path in FILES:
        if room_of(path) != "parallel":
            assert "with_sharding_constraint" not in path.read_text(), f"{path}: use parallel.constrain"

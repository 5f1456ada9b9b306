"""House rules that a reader cannot check by eye: import direction, sizes, circles, what must never be imported.

``python -m tests.test_architecture`` writes the table of packages into the documentation.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lclm_jax"
FILES = sorted(SOURCE.rglob("*.py"))
DOCUMENT = next(ROOT.joinpath("docs").rglob("architecture.md"))
MARKS = ("<!-- packages: written by python -m tests.test_architecture -->", "<!-- end of packages -->")


class Package(NamedTuple):
    """One package (or module) at the top of ``lclm_jax``."""

    holds: str
    may_import: frozenset[str]


def _packages() -> dict[str, Package]:
    rows: dict[str, Package] = {}

    def add(name: str, holds: str, *may_import: str) -> None:
        rows[name] = Package(holds, frozenset(may_import))

    base = ("version", "types", "errors", "machine", "xla_flags", "paths", "files", "progress")
    add("version", "the version of the package")
    add("types", "types that many packages name: JSON values, trees of arrays")
    add("errors", "the one family of errors that a user can cause")
    add("machine", "what this machine lets a process have: cores, memory, open files")
    add("xla_flags", "flags that XLA would end the process on", "errors")
    add("paths", "where files lie, on a disk or in a bucket: one type for both", "types", "errors", "machine")
    add("files", "files that are written whole or not at all", "types", "errors", "machine", "paths")
    add("progress", "progress of long work as log lines")
    add("config", "the configuration tree: every key with its default, limits, role and documentation", *base)
    add("batch", "`Batch`, the fixed layout that data hands to the model", "types", "errors", "config")
    add("text", "tokenizers, chat templates, memory tags, span placement, examples", *base, "config")
    add("data", "raw files to prepared shards, packed rows, row index, batches", *base, "config", "batch", "text")
    add("kernels", "attention, pooling, cross-entropy on plain arrays; imports only the registries of `config`",
        "types", "errors", "config")  # fmt: skip
    add("parallel", "the mesh, the one sharding table, start-up of several processes", *base, "config", "batch")
    add("model", "encoder, pooling, adapter, splice and decoder, a file each, and their FLOPs",
        *base, "config", "batch", "kernels", "parallel")  # fmt: skip
    core = (*base, "config", "batch", "text", "data", "model", "parallel")
    add("train", "loss, optimizer, step, loop; checkpoints; supervision; logging", *core)
    add("interop", "Hugging Face import and export, model card", *core, "train")
    add("inference", "generation with a KV cache from text and latents", *core, "train", "interop")
    add("eval", "context gain, verbatim repetition, their statistics", *core, "train", "interop", "inference")
    everything = (*core, "train", "interop", "inference", "eval")
    add("plan", "a train step compiled for hardware that this machine does not have: memory, FLOPs, traffic",
        *base, "config", "batch", "kernels", "model", "parallel", "train")  # fmt: skip
    add("bench", "kernels, the train step, generation and the data path beside the alternatives of libraries",
        *core, "train", "interop", "inference", "kernels", "plan")  # fmt: skip
    add("suite", "benchmarks of long context: tasks, systems, scores, times, memory", *everything)
    add("agent", "skim and expand: tasks and traces to train on, the agent's loop on the JAX generator",
        *everything, "suite")  # fmt: skip
    add("ops", "the folder of a run: its lock, its finished steps, its status and goodput", *everything)
    add("ablate", "studies: variants, seeds trained together, paired statistics", *everything, "ops")
    add("tune", "a released LCLM to a tuned one: `lclm tune`", *everything, "ops", "plan", "suite")
    add("report", "pages, plots and tables of runs, studies and plans", *everything, "ops", "ablate", "plan", "suite")
    add("pipeline", "the steps from corpus to report", *everything, "ops", "report")
    add("parity", "golden cases: our numbers beside those of the PyTorch implementation", *everything)
    add("drills", "fault injection: a run is disturbed and must lose nothing", *everything, "ops")
    add("doctor", "checks of a job before it runs: versions, devices, links, storage, clocks, limits", *core, "train")
    add("api", "the public Python API", *(set(rows) - {"parity", "drills", "doctor"}))
    add("cli", "the `lclm` command", *(set(rows) - {"cli"}))
    add("__main__", "`python -m lclm_jax`", "cli")
    return rows


PACKAGES = _packages()
FORBIDDEN_MODULES = {"pickle", "torch", "transformers", "dill", "cloudpickle", "joblib"}
# file -> what it alone may import. The PyTorch project's vLLM script reads a .pt file, which only torch writes; the
# file writes one on request (extra [torch]), imports torch inside its functions, and never reads one. The measurements
# beside PyTorch need PyTorch, if it is there, and import it inside functions as well.
EXCEPTIONS = {
    "inference/torch_file.py": {"torch"},
    "bench/torch_attention.py": {"torch"},
    "bench/generate.py": {"torch", "transformers"},
    "bench/torch_step.py": {"torch", "transformers"},
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
MAX_ENTRIES = 16
MAX_ANY = 110
ENTRIES = {"data": 8, "train": 6}
"""Entries of a folder that has a limit of its own; the packages above say what the top level holds."""
MAX_CHAIN = 16


def package_of(path: Path) -> str:
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
    package = package_of(path)
    if package == "__init__":
        return
    allowed = PACKAGES[package].may_import | {package}
    forbidden = FORBIDDEN_MODULES - EXCEPTIONS.get(str(path.relative_to(SOURCE)), set())
    for name in imports_of(ast.parse(path.read_text())):
        parts = name.split(".")
        assert parts[0] not in forbidden, f"{path}: imports {name}"
        assert name != "flax.nnx", f"{path}: imports {name}"
        if parts[0] == "lclm_jax" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{path}: {package} may not import {parts[1]}; see {DOCUMENT.name}"


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
        if package_of(path) != "parallel":
            assert "with_sharding_constraint" not in path.read_text(), f"{path}: use parallel.constrain"


def test_folders_stay_small():
    for folder in {path.parent for path in FILES} - {SOURCE}:
        entries = [entry.name for entry in folder.iterdir() if entry.name != "__pycache__"]
        limit = ENTRIES.get(str(folder.relative_to(SOURCE)), MAX_ENTRIES)
        assert len(entries) <= limit, f"{folder} has {len(entries)} entries: sort them into folders"


def test_any_is_rare():
    count = sum(len(re.findall(r"\bAny\b", path.read_text(encoding="utf-8"))) for path in FILES)
    assert count <= MAX_ANY, f"Any stands {count} times in the package, at most {MAX_ANY}: name the type"


def test_every_package_is_known():
    assert {package_of(path) for path in FILES} - {"__init__"} == set(PACKAGES)


def _module(path: Path) -> str:
    parts = ("lclm_jax", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _modules_named(nodes: Iterator[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found & MODULES.keys()


def _at_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _at_module_level(child)


def _graph(walk) -> dict[str, set[str]]:
    return {name: _modules_named(walk(ast.parse(path.read_text()))) - {name} for name, path in MODULES.items()}


def test_no_circle_between_files():
    """Imports inside functions count: they hide a circle, they do not open it."""
    graph = _graph(ast.walk)
    while ends := {name for name, named in graph.items() if not named & graph.keys()}:
        graph = {name: named for name, named in graph.items() if name not in ends}
    assert not graph, f"these files import each other in a circle, or lean on one: {sorted(graph)}"


def test_chains_of_imports_are_short():
    graph = _graph(_at_module_level)

    @functools.cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max((chain(other) for other in graph[name]), key=len, default=()))

    longest = max(map(chain, graph), key=len)
    assert len(longest) <= MAX_CHAIN, f"{len(longest)} modules import one another in a row: {' -> '.join(longest)}"


def table() -> str:
    """The packages as a Markdown table, lowest first."""
    lines = ["| package | what it holds | may import |", "|---|---|---|"]
    order = list(PACKAGES)
    for name, (holds, may_import) in PACKAGES.items():
        below = ", ".join(sorted(may_import, key=order.index))
        lines.append(f"| `{name}` | {holds} | {below} |")
    return "\n".join(lines)


def test_documented_packages_are_the_enforced_ones():
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = (text.index(mark) for mark in MARKS)
    assert text[begin + len(MARKS[0]) : end].strip() == table(), "run: python -m tests.test_architecture"


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}", encoding="utf-8")

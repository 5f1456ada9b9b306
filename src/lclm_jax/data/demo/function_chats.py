"""A small chat set from Python sources: questions about functions whose source stands in memory tags."""

import ast
import hashlib
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lclm_jax.data.documents import Document
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START

Messages = list[dict[str, str]]

SOURCE_CHARACTERS = (40, 1200)
"""Shortest and longest source of a function that is asked about; others are counted as ``source_length``."""
SUMMARY_CHARACTERS = (12, 160)
"""Shortest and longest first line of a docstring that is used as an answer."""

_SUMMARY_REQUESTS = (
    "What does {name} do?",
    "Summarize the function in one line.",
    "Write the docstring of {name}.",
    "Describe {name} briefly.",
)
_PARAMETER_REQUESTS = (
    "Which parameters does {name} take?",
    "List the parameters of the function.",
    "Name the arguments of {name}.",
)
_FIRST_LINE_REQUESTS = ("Quote the first line of {name}.", "How does the definition begin?")
_CHOICE_REQUESTS = ("Which function is this about: {summary}", "{summary} Which of the functions does that?")


@dataclass(frozen=True)
class Function:
    """A function with a docstring."""

    name: str
    source: str
    """Dedented, without the docstring."""
    summary: str
    """First line of the docstring."""
    parameters: tuple[str, ...]


def chats_of(document: Document, counts: Counter[str] | None = None) -> Iterator[Messages]:
    """Chats about the functions of a Python file, each with its source in memory tags; the last message is a reply.

    Three kinds: one question; two questions in turn; two sources of which one answers the question. Which kind and
    which wording is a hash of the document's id and the function's place. Nothing for documents that are not Python.

    ``counts`` gains one by reason: ``unparseable`` files, functions of an unsuitable ``source_length``.
    """
    counts = Counter() if counts is None else counts
    if not document.id.endswith(".py"):
        return
    functions = list(_functions(document, counts))
    for place, function in enumerate(functions):
        draw = int.from_bytes(hashlib.sha256(f"{document.id}:{place}".encode()).digest()[:8], "big")
        kind, draw = draw % 4, draw // 4
        other = functions[(place + 1) % len(functions)]
        if kind == 0 and other.name != function.name:
            yield _choice(function, other, draw)
        elif kind == 1 and function.parameters:
            yield _in_turn(function, draw)
        elif kind == 2 and function.parameters:
            yield _single(function, _parameters(function, draw))
        elif draw % 5 == 0:
            yield _single(function, _first_line(function, draw))
        else:
            yield _single(function, _summary(function, draw))


def _functions(document: Document, counts: Counter[str]) -> Iterator[Function]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError):
        counts["unparseable"] += 1
        return
    lines = document.text.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = _function(node, lines)
            if function is None:
                continue
            if SOURCE_CHARACTERS[0] <= len(function.source) <= SOURCE_CHARACTERS[1]:
                yield function
            else:
                counts["source_length"] += 1


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Function | None:
    documentation = ast.get_docstring(node)
    summary = documentation.strip().split("\n\n")[0].replace("\n", " ") if documentation else ""
    if not SUMMARY_CHARACTERS[0] <= len(summary) <= SUMMARY_CHARACTERS[1] or len(node.body) < 2:
        return None
    docstring = node.body[0]
    before, after = lines[node.lineno - 1 : docstring.lineno - 1], lines[docstring.end_lineno : node.end_lineno]
    source = textwrap.dedent("\n".join(before + after)).strip("\n")
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
    parameters += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    parameters += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return Function(node.name, source, summary, tuple(parameters))


def _single(function: Function, question: tuple[str, str]) -> Messages:
    request, answer = question
    return [_user(f"{_memory(function)}\n{request}"), _assistant(answer)]


def _in_turn(function: Function, draw: int) -> Messages:
    first, second = _summary(function, draw), _parameters(function, draw // 7)
    return [
        _user(f"{_memory(function)}\n{first[0]}"),
        _assistant(first[1]),
        _user(second[0]),
        _assistant(second[1]),
    ]


def _choice(function: Function, other: Function, draw: int) -> Messages:
    pair = (function, other) if draw % 2 else (other, function)
    request = _CHOICE_REQUESTS[draw // 2 % len(_CHOICE_REQUESTS)].format(summary=function.summary)
    return [_user(f"{_memory(pair[0])}\n{_memory(pair[1])}\n{request}"), _assistant(function.name)]


def _summary(function: Function, draw: int) -> tuple[str, str]:
    return _SUMMARY_REQUESTS[draw % len(_SUMMARY_REQUESTS)].format(name=function.name), function.summary


def _parameters(function: Function, draw: int) -> tuple[str, str]:
    request = _PARAMETER_REQUESTS[draw % len(_PARAMETER_REQUESTS)].format(name=function.name)
    return request, ", ".join(function.parameters)


def _first_line(function: Function, draw: int) -> tuple[str, str]:
    request = _FIRST_LINE_REQUESTS[draw // 5 % len(_FIRST_LINE_REQUESTS)].format(name=function.name)
    return request, function.source.split("\n", 1)[0]


def _memory(function: Function) -> str:
    return f"{MEMORY_START}{function.source}{MEMORY_END}"


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}

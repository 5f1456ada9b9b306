"""Questions with known answers about segments: what traces are made of, and what an agent is measured on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lclm_agent.errors import AgentError


class Question(NamedTuple):
    """One question about the segments of a task."""

    text: str
    answers: tuple[str, ...]
    """All of them belong in the answer."""
    needed: tuple[int, ...]
    """Segments that hold the answers, counted from 0."""


class Task(NamedTuple):
    """Segments and questions about them."""

    id: str
    kind: str
    segments: tuple[str, ...]
    questions: tuple[Question, ...]


def read_tasks(path: Path) -> Iterator[Task]:
    """The tasks of a file of JSON lines, one each; raises ``AgentError`` with the line of the first bad one."""
    if not path.is_file():
        raise AgentError(f"there is no file {path}; make it with `lclm data expand-traces --tasks`")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _task(json.loads(line))
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                raise AgentError(f"{path}, line {number}: no task ({type(error).__name__}: {error})") from None


def _task(values: dict[str, Any]) -> Task:
    segments = tuple(map(str, values["segments"]))
    questions = []
    for one in values["questions"]:
        needed = tuple(int(place) for place in one["needed"])
        if not needed or not all(0 <= place < len(segments) for place in needed):
            raise ValueError(f"needed={list(needed)} does not name segments 0 to {len(segments) - 1}")
        questions.append(Question(str(one["text"]), tuple(map(str, one["answers"])), needed))
    return Task(str(values["id"]), str(values["kind"]), segments, tuple(questions))

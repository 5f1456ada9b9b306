"""Text after a context: the likelihood of what follows tells small models apart long before they answer questions."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.scoring.scorers import LIKELIHOOD
from lclm_jax.suite.spec import TaskConfig
from lclm_jax.suite.tasks.files import json_lines, select
from lclm_jax.text.tokenizer import Tokenizer

_FIRST_TOKENS = 4
"""Tokens of the continuation that are given, so that without context there is something to go on from."""


def load(task: TaskConfig, tokenizer: Tokenizer) -> Iterator[Sample]:
    """One place of every text of a folder (``*.txt``, ``*.md``) or of a JSON lines file (key ``text``)."""
    texts = list(_texts(Path(task.data or "")))
    wanted = task.context_tokens + _FIRST_TOKENS + task.continuation_tokens
    samples = []
    for name, text in texts:
        _, starts, _ = tokenizer.encode_with_offsets(text, plain=True)
        if len(starts) <= wanted:
            continue
        begin = (len(starts) - wanted) // 2
        bounds = [begin, begin + task.context_tokens, begin + task.context_tokens + _FIRST_TOKENS, begin + wanted]
        places = [int(starts[bound]) for bound in bounds]
        context, question, gold = (text[a:b] for a, b in itertools.pairwise(places))
        if not (context and question and gold):
            continue
        samples.append(
            Sample(
                id=f"continuation/{name}",
                task=f"continuation/{task.context_tokens}",
                context=context,
                question=question,
                answers=(),
                gold=gold,
                max_new_tokens=task.continuation_tokens,
                chat=False,
                length=task.context_tokens,
                extra={"scorer": LIKELIHOOD},
            )
        )
    if not samples:
        raise LclmError(
            f"{task.data} has {len(texts)} texts, none of {wanted} tokens; lower context_tokens or name longer texts"
        )
    yield from select(samples, task.samples, task.seed)


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_file():
        for number, (_, row) in enumerate(json_lines(path, {"text": str})):
            yield str(row.get("id", number)), row["text"]
        return
    files = sorted(file for ending in ("txt", "md") for file in path.rglob(f"*.{ending}"))
    if not files:
        raise LclmError(f"{path} holds no *.txt or *.md file; name a folder of texts, or JSON lines with the key text")
    for file in files:
        yield file.relative_to(path).as_posix(), file.read_text(encoding="utf-8", errors="replace")

"""A few greedy answers of an exported model to prompts whose context is compressed, from held-out text."""

from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.demo.function_chats import chats_of
from lclm_jax.data.documents import Document
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.shards import open_split
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.paths import local_copy
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

_DOCUMENTS = 2000


def sample_answers(config: Config, export: Path) -> list[JsonObject]:
    """Reload ``export`` and answer ``eval.generations`` prompts of each task.

    Tasks: repeat a span, continue after a span, answer a question about a function. Prompts are spread over the
    held-out files. Returns dictionaries with ``task``, ``id`` (the file), ``prompt``, ``answer`` and ``expected``.
    """
    count = config.eval.generations
    if not count:
        return []
    generator = Generator.from_folder(local_copy(export), compute_dtype=config.model.compute_dtype)
    tokenizer = Tokenizer.from_folder(RunPaths(config).encoder_tokenizer)
    documents = _held_out(config)
    tasks = [
        *_spread([_repeat(document, config, tokenizer) for document in documents], count),
        *_spread([_continue(document, config, tokenizer) for document in documents], count),
        *_spread([_question(document) for document in documents], count),
    ]
    answers = generator.generate(
        [task["messages"] for task in tasks], Sampling(max_new_tokens=config.eval.max_new_tokens)
    )
    return [
        {
            "task": task["task"],
            "id": task["id"],
            "prompt": task["shown"],
            "answer": answer.text,
            "expected": task["expected"],
        }
        for task, answer in zip(tasks, answers, strict=True)
    ]


def _held_out(config: Config) -> list[Document]:
    """Held-out documents, at most ``_DOCUMENTS`` of them, evenly over the collection."""
    split = open_split(config, config.eval.collection, "held_out")
    records = split.read_many(range(0, len(split), max(1, len(split) // _DOCUMENTS)))
    return [Document(column_text(one["id"]), column_text(one["text"]), "held_out") for one in records]


def _spread(tasks: list[JsonObject | None], count: int) -> list[JsonObject]:
    """``count`` of the tasks that exist, evenly over the list."""
    present = [task for task in tasks if task is not None]
    step = max(1, len(present) // count)
    return present[::step][:count]


def _cut(document: Document, tokens: int, following: int, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """A stretch of ``tokens`` from a third into the document, at line starts, and what follows it."""
    begin = document.text.find("\n", len(document.text) // 3) + 1
    text = document.text[begin : begin + 8 * (tokens + following)]
    _, starts, _ = tokenizer.encode_with_offsets(text, plain=True)
    if begin == 0 or len(starts) <= tokens + following or MEMORY_START in text or MEMORY_END in text:
        return None
    middle, end = int(starts[tokens]), int(starts[tokens + following])
    return text[:middle], text[middle:end]


def _repeat(document: Document, config: Config, tokenizer: Tokenizer) -> JsonObject | None:
    cut = _cut(document, config.eval.repetition_tokens, 1, tokenizer)
    if cut is None:
        return None
    content = f"{MEMORY_START}{cut[0]}{MEMORY_END}\nRepeat the text."
    messages = [{"role": "user", "content": content}]
    return {"task": "repeat", "id": document.id, "messages": messages, "shown": content, "expected": cut[0]}


def _continue(document: Document, config: Config, tokenizer: Tokenizer) -> JsonObject | None:
    cut = _cut(document, config.eval.context_tokens, config.eval.max_new_tokens, tokenizer)
    if cut is None:
        return None
    content = f"{MEMORY_START}{cut[0]}{MEMORY_END}"
    return {"task": "continue", "id": document.id, "messages": content, "shown": content, "expected": cut[1]}


def _question(document: Document) -> JsonObject | None:
    chats = [chat for chat in chats_of(document) if len(chat) == 2]
    if not chats:
        return None
    question, reply = min(chats, key=lambda chat: len(chat[0]["content"]))
    return {
        "task": "question",
        "id": document.id,
        "messages": [question],
        "shown": question["content"],
        "expected": reply["content"],
    }

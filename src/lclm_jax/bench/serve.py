"""How fast a server answers from raw text and from latents: cold, stored, and when it has read the document before."""

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lclm_jax.bench.flops import prompt_flops
from lclm_jax.bench.served import Answer, Served
from lclm_jax.bench.untrained import Documents
from lclm_jax.config import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.interop.load import read_model
from lclm_jax.machine import cores
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

WAYS = {
    "raw": "raw text",
    "raw_again": "raw text, second question",
    "cold": "compressed",
    "cold_again": "compressed, second question",
    "stored": "compressed, latents stored",
}
"""What is timed -> how it is called."""
_QUESTIONS = ("\nWhat does it do?", "\nWhich names does it define, and what are they for?")
_ROOM = 256
"""Positions for tags, questions and the text's number."""


@dataclass(frozen=True)
class ServeBench:
    """What to measure."""

    python: Path
    """Interpreter of an environment with vLLM and lclm-serving."""
    lengths: tuple[int, ...]
    """Tokens of the documents."""
    new_tokens: int
    repeats: int
    """Documents of each length."""
    memory: bool
    """Whether to measure peaks of memory, each on a server of its own."""
    options: tuple[str, ...]
    """More arguments of the server."""


def bench_serve(models: Sequence[Path], wanted: ServeBench, folder: Path) -> JsonObject:
    """Measure every model on a server of its own; all ways in turn, so that they share what disturbs the machine.

    Args:
        models: exports.
        wanted: what to measure.
        folder: where stores and logs of servers go.

    Returns:
        JSON values: for each model ``rows``, one a length, with medians over the documents: for each way the time to
        the first token, tokens in a second and positions of the prompt; ``flops`` of raw text to compressed (cold).

    Raises:
        LclmError: a folder is no export, its decoder has too few positions, or the server does not start.
    """
    if not wanted.lengths or wanted.repeats < 1 or wanted.new_tokens < 2:
        raise LclmError("at least one length, one repetition and two new tokens are needed to measure anything")
    found = []
    for number, model in enumerate(models):
        config = read_model(model)
        need = max(wanted.lengths) + _ROOM + wanted.new_tokens
        if config.decoder.max_positions < need:
            raise LclmError(
                f"{model} has {config.decoder.max_positions} positions, and {need} are needed for raw text;"
                " shorten --length"
            )
        found.append({"model": str(model), **_measure(model, config, wanted, folder / f"{number}")})
    machine = {"cores": cores(), "memory_bytes": psutil.virtual_memory().total}
    return {"models": found, "settings": asdict(wanted) | {"python": str(wanted.python)}, "machine": machine}


def _measure(model: Path, config: ModelConfig, wanted: ServeBench, folder: Path) -> JsonObject:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_folder(model / "decoder")
    documents = Documents(tokenizer, max(wanted.lengths))
    times: dict[int, dict[str, list[Answer]]] = {length: {way: [] for way in WAYS} for length in wanted.lengths}
    with _server(model, wanted, folder, "timed") as server:
        version = server.version()
        for way, answer in _ask_all(server, documents, min(wanted.lengths), wanted.new_tokens):
            logger.debug("warm-up, %s: %.3f s", way, answer.first_token_s)
        for number in range(wanted.repeats):
            for length in wanted.lengths:
                for way, answer in _ask_all(server, documents, length, wanted.new_tokens):
                    times[length][way].append(answer)
                    logger.info("document %d of %d tokens, %s: %.2f s", number + 1, length, way, answer.first_token_s)
    rows = [_row(config, length, times[length]) for length in wanted.lengths]
    result: JsonObject = {"ratio": config.ratio, "window": config.window, "rows": rows, "vllm": version}
    if wanted.memory:
        result["memory"] = _peaks(model, wanted, folder, documents.next(max(wanted.lengths)))
    return result


def _ask_all(server: Served, documents: Documents, length: int, new_tokens: int) -> Iterator[tuple[str, Answer]]:
    """Each way with a document that is new to the server."""
    first, second = _QUESTIONS
    raw, span = documents.next(length), f"<|memory_start|>{documents.next(length)}<|memory_end|>"
    yield "raw", server.ask(raw + first, new_tokens)
    yield "raw_again", server.ask(raw + second, new_tokens)
    yield "cold", server.ask(span + first, new_tokens)
    yield "cold_again", server.ask(span + second, new_tokens)
    server.forget()
    yield "stored", server.ask(span + first, new_tokens)


def _server(model: Path, wanted: ServeBench, folder: Path, name: str) -> Served:
    store = (folder / "latents.db").absolute()
    options = ["--max-model-len", str(max(wanted.lengths) + _ROOM + wanted.new_tokens), "--max-num-seqs", "4"]
    options += ["--additional-config", f'{{"lclm_store": "{store}"}}', *wanted.options]
    return Served(wanted.python, model, folder / f"{name}.log", options)


def _row(config: ModelConfig, length: int, times: dict[str, list[Answer]]) -> JsonObject:
    row: JsonObject = {"tokens": length}
    for way, answers in times.items():
        row[way] = {
            "first_token_s": statistics.median(answer.first_token_s for answer in answers),
            "spread_s": [min(a.first_token_s for a in answers), max(a.first_token_s for a in answers)],
            "tokens_per_s": statistics.median(answer.tokens_per_s for answer in answers),
            "positions": answers[0].positions,
        }
    # Positions beside the document are those of tags and of the question.
    text = row["cold"]["positions"] - -(-length // config.ratio)
    row["flops"] = prompt_flops(config, row["raw"]["positions"]) / prompt_flops(config, max(text, 1), length)
    row["speedup"] = statistics.median(
        raw.first_token_s / cold.first_token_s for raw, cold in zip(times["raw"], times["cold"], strict=True)
    )
    row["share_of_flops"] = row["speedup"] / row["flops"]
    row["stored_speedup"] = statistics.median(
        cold.first_token_s / stored.first_token_s for cold, stored in zip(times["cold"], times["stored"], strict=True)
    )
    return row


def _peaks(model: Path, wanted: ServeBench, folder: Path, document: str) -> JsonObject:
    """Bytes by which a fresh server grew while it answered one prompt: freed memory is not always given back."""
    span = f"<|memory_start|>{document}<|memory_end|>"
    found: JsonObject = {}
    for way, text in (("raw", document), ("cold", span), ("stored", span)):
        with _server(model, wanted, folder, f"memory-{way}") as server:
            before = server.memory()
            answer = server.ask(text + _QUESTIONS[0], wanted.new_tokens)
            found[way] = {"before_bytes": before, "grown_bytes": answer.peak_bytes - before}
    return found

"""A file of prompts to a file of spliced prompt embeddings, one ``[positions, hidden]`` tensor each, for vLLM."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.data.packing.windows import plan_spans
from lclm_jax.errors import LclmError
from lclm_jax.files import replacing
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.prompts import PromptError, PromptLine, read_example, read_prompts
from lclm_jax.inference.span_ratios import parse_ratios, with_ratios
from lclm_jax.inference.stream import TensorStream, read_records
from lclm_jax.inference.torch_file import require_torch, write_torch_file
from lclm_jax.inference.windows import BATCH_WINDOWS
from lclm_jax.interop.load import read_model
from lclm_jax.text.example import Example, latent_count
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.types import JsonObject

log = logging.getLogger(__name__)

FORMATS = ("safetensors", "pt")
Progress = Callable[[str, int, int], None]
"""Told of (what is counted, how many are done, how many there are)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a prompt before it is encoded."""

    line: int
    id: str
    positions: int
    spans: int
    latents: int
    encoder_tokens: int
    windows: int
    extra: JsonObject
    ratios: tuple[int, ...] | None = None
    """N of each span; None: the model's."""

    def record(self, array: np.ndarray, source: str) -> JsonObject:
        """The line of metadata of its embeddings ``array``."""
        digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
        counts = {name: getattr(self, name) for name in ("line", "positions", "spans", "latents", "encoder_tokens")}
        own = {} if self.ratios is None else {"ratios": list(self.ratios)}
        return {"id": self.id, **counts, **own, "sha256": digest, "source": source, "extra": self.extra}


class Reading(NamedTuple):
    """How the spans of prompts are read."""

    batch_windows: int = BATCH_WINDOWS
    """Most windows that the encoder reads at once."""
    store: Path | None = None
    """File of a store of latents: windows that it has are not read again, and it gets the others."""
    ratio: str | None = None
    """N of the spans: one for all, or one for each with commas between, or ``auto``: chosen by the model's head, for
    which windows are read twice, unless a store keeps them. None: the model's."""
    budget: float | None = None
    """Latents per token, with ``auto``."""


def encode_prompts(
    folder: Path,
    prompts: Path,
    out: Path,
    *,
    file_format: str = "safetensors",
    reading: Reading = Reading(),  # noqa: B008 - immutable
    progress: Progress | None = None,
) -> list[JsonObject]:
    """Encode every prompt of a JSONL file and write the embeddings to ``out``, their metadata to ``out`` + ``.jsonl``.

    Every prompt is read and checked before the model is loaded. An interrupted call leaves its finished prompts beside
    ``out``; rerunning the command resumes after them. A finished file of the same model and prompts is left as it is.

    Args:
        folder: exported or released LCLM.
        prompts: see ``read_prompts``.
        out: file to write; one of an earlier call is replaced.
        file_format: ``safetensors`` (a tensor per id, in the model's dtype) or ``pt`` (see ``torch_file``).
        reading: how spans are read.
        progress: told of prompts read, then of windows encoded.

    Returns:
        The records of the metadata, in the order of the prompts.

    Raises:
        PromptError: a line holds no usable prompt.
        LclmError: the folder cannot be read, or torch is missing for ``pt``.
    """
    if file_format not in FORMATS:
        raise LclmError(f"format {file_format!r} is unknown; use one of {', '.join(FORMATS)}")
    metadata = out.with_name(out.name + ".jsonl")
    if prompts.resolve() in (out.resolve(), metadata.resolve()):
        raise LclmError(f"{out} and its metadata {metadata.name} would replace the prompts; name another file")
    if file_format == "pt":
        require_torch()
    progress = progress or (lambda *_: None)
    model = read_model(folder)
    ratios = parse_ratios(reading.ratio, reading.budget, folder, model)
    plans = _plan(folder, prompts, model, progress)
    wanted = file_format if ratios is None else f"{file_format} {reading.ratio} {reading.budget}"
    source = _fingerprint(folder, prompts, wanted)
    if out.is_file() and metadata.is_file():
        records = read_records(metadata)
        if [(r.get("id"), r.get("source")) for r in records] == [(plan.id, source) for plan in plans]:
            log.info("%s is complete: nothing to do", out)
            return records
    generator = Generator.from_folder(folder, batch_windows=reading.batch_windows, store=reading.store)
    if ratios is not None:
        generator.ratios = ratios
        plans = _with_ratios(generator, prompts, plans)
    out.parent.mkdir(parents=True, exist_ok=True)
    shapes = {plan.id: (plan.positions, model.decoder.hidden_size) for plan in plans}
    with TensorStream(out, shapes, generator.model.compute_dtype, source) as stream:
        if stream.done:
            log.info("%d of %d prompts are finished already", len(stream.done), len(plans))
        _encode(generator, prompts, plans, stream, progress)
    return _finish(stream, metadata, file_format)


def _plan(folder: Path, path: Path, model: ModelConfig, progress: Progress) -> list[Plan]:
    """Tokenize every prompt once for its sizes, so that all errors come first."""
    tokenizers = Tokenizers(*(Tokenizer.from_folder(folder / part) for part in ("decoder", "encoder")))
    plans = []
    for entry in read_prompts(path):
        try:
            example = read_example(entry.prompt, tokenizers, model)
            plans.append(_plan_one(entry, example, model))
        except LclmError as error:
            raise PromptError(f"{path}, line {entry.line}: {error}") from None
        progress("prompts read", len(plans), 0)
    if not plans:
        raise PromptError(f'{path} holds no prompt; write one object per line, such as {{"prompt": "text"}}')
    return plans


def _plan_one(entry: PromptLine, example: Example, model: ModelConfig) -> Plan:
    positions, limit = len(example.tokens), model.decoder.max_positions
    if positions >= limit:
        raise LclmError(
            f"{positions} positions leave no room for a new token in the decoder's max_positions={limit}; shorten the"
            " prompt or compress more of it"
        )
    sizes = [len(span) for span in example.spans]
    windows = len(plan_spans([max(1, size) for size in sizes], model).span)
    latents = sum(latent_count(size, model.ratio) for size in sizes)
    return Plan(entry.line, entry.id, positions, len(sizes), latents, sum(sizes), windows, dict(entry.extra))


def _with_ratios(generator: Generator, path: Path, plans: Sequence[Plan]) -> list[Plan]:
    """``plans`` with the ratios of the spans, which are read for it, and the sizes that follow from them."""
    chosen: list[Plan] = []
    for group in _groups(path, plans, 0, generator.encoder.batch_windows):
        examples, _ = generator.read([generator.example(entry.prompt) for entry, _ in group])
        for (_, plan), example in zip(group, examples, strict=True):
            assert example.ratios is not None, "the generator chooses ratios"
            ratios = tuple(example.ratios.tolist())
            latents = sum(map(latent_count, map(len, example.spans), ratios))
            chosen.append(replace(plan, positions=len(example.tokens), latents=latents, ratios=ratios))
    return chosen


def _encode(generator: Generator, path: Path, plans: Sequence[Plan], stream: TensorStream, progress: Progress) -> None:
    total, done = sum(plan.windows for plan in plans), sum(plan.windows for plan in plans[: len(stream.done)])

    def count(windows: int) -> None:
        nonlocal done
        done += windows
        progress("windows encoded", done, total)

    count(0)
    for group in _groups(path, plans, len(stream.done), generator.encoder.batch_windows):
        examples = [generator.example(entry.prompt) for entry, _ in group]
        if generator.ratios is not None:
            chosen = zip(examples, (plan.ratios for _, plan in group), strict=True)
            examples = [with_ratios(example, ratios or (), generator.model) for example, ratios in chosen]
        if [len(example.tokens) for example in examples] != [plan.positions for _, plan in group]:
            raise PromptError(f"{path} changed while it was read; run the command again")
        # One at a time: the embeddings of a prompt are far larger than its pooled vectors.
        for (_, plan), array in zip(group, generator.embeddings(examples, count), strict=True):
            stream.append(array, plan.record(array, stream.source))


def _groups(path: Path, plans: Sequence[Plan], skip: int, windows: int) -> Iterator[list[tuple[PromptLine, Plan]]]:
    """Prompts in order, so many together that they fill one batch of ``windows`` (a longer prompt stands alone)."""
    group: list[tuple[PromptLine, Plan]] = []
    used = 0
    for index, pair in enumerate(zip(_again(path, plans), plans, strict=True)):
        if index < skip:
            continue
        if group and (used + pair[1].windows > windows or len(group) >= windows):
            yield group
            group, used = [], 0
        group.append(pair)
        used += pair[1].windows
    if group:
        yield group


def _again(path: Path, plans: Sequence[Plan]) -> Iterator[PromptLine]:
    """The prompts of ``path`` once more; raises ``PromptError`` unless they are those of ``plans``."""
    count = 0
    for count, entry in enumerate(read_prompts(path), 1):
        if count > len(plans) or entry.id != plans[count - 1].id:
            break
        yield entry
    else:
        if count == len(plans):
            return
    raise PromptError(f"{path} changed while it was read; run the command again")


def _finish(stream: TensorStream, metadata: Path, file_format: str) -> list[JsonObject]:
    records = stream.done
    with replacing(metadata) as part:
        part.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        # The data first: metadata that names this call beside older data would pass for a finished file.
        if file_format == "pt":
            meta = [{**record["extra"], **{k: v for k, v in record.items() if k != "extra"}} for record in records]
            write_torch_file(stream.part, [record["id"] for record in records], meta, stream.path)
        else:
            stream.part.replace(stream.path)
    stream.part.unlink(missing_ok=True)
    stream.journal.unlink()
    return records


def _fingerprint(folder: Path, prompts: Path, file_format: str) -> str:
    """Identifies the model, the prompts and the format; weights by size and time, everything else by content."""
    digest = hashlib.sha256(f"1 {file_format}\n".encode())
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        status = path.stat()
        if path.suffix == ".safetensors":
            what = f"{status.st_size} {status.st_mtime_ns}"
        elif path.suffix in (".json", ".jinja", ".model", ".txt"):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            continue
        digest.update(f"{path.relative_to(folder)} {what}\n".encode())
    with prompts.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]

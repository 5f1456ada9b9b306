"""Corpus to prepared shards: tokenized once, by every tokenizer, free of the compression ratio."""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.config.base import suggestion
from lclm_jax.data.prepare.corpus import SPLITS, output_folders
from lclm_jax.data.prepare.deduplication import dedup_stages
from lclm_jax.data.prepare.file_versions import changed_entries, changed_since, shown_files, sources_name
from lclm_jax.data.prepare.parts import Part, Report, parts_of_worker, plan_parts, preparation_settings, settings_key
from lclm_jax.data.prepare.prepare_part import PreparationContext, make_part, run_tokenizers
from lclm_jax.data.prepare.reject_counter import RejectCounter, left_out
from lclm_jax.data.prepare.rows.decontamination import Decontamination
from lclm_jax.data.prepare.rows.selection import unclaimed
from lclm_jax.data.prepare.workers import make_in_processes
from lclm_jax.data.store.shards import FORMAT, MANIFEST, REJECTS, lengths_name, read_manifest, shard_cache
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.data.store.vocabulary import token_bytes, write_vocabulary
from lclm_jax.errors import LclmError
from lclm_jax.machine import cores
from lclm_jax.progress import log_progress
from lclm_jax.text.tokenizer import Tokenizers, check_vocabularies
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

REJECTS_KEPT = 100

"""Bad rows of each reason in the rejects file."""

FILES_SHOWN = 10
"""Files of a collection that are left out and named at the end; the manifest has all."""

Progress = Callable[[int, int], None]

"""Called with (bytes of corpus done, bytes in all)."""


@dataclass(frozen=True)
class Plan:
    """A preparation before it begins."""

    config: Config
    storage: Storage
    parts: tuple[Part, ...]
    tokenizers: Tokenizers
    settings: JsonObject
    key: str


def plan_preparation(config: Config, out_dir: str | Path | None = None) -> Plan:
    """Look at the corpus and the tokenizers of ``config``.

    Raises:
        LclmError: missing or empty corpus, an unusable tokenizer, or files that are not those that the folder was
            prepared from.
    """
    # Fail before the work, not after it.
    storage = Storage(out_dir or RunPaths(config).prepared, shard_cache(config))
    tokenizers = run_tokenizers(config)
    _ = tokenizers.decoder.memory_ids
    check_vocabularies(config.model.decoder.vocab_size, config.model.encoder.vocab_size, tokenizers)
    _check_collections(config)
    Decontamination(config.corpus, RejectCounter())
    parts = plan_parts(config)
    settings = preparation_settings(config, parts, tokenizers._asdict())
    plan = Plan(config, storage, tuple(parts), tokenizers, settings, settings_key(settings))
    _check_files(plan)
    return plan


def prepare_corpus(
    config: Config,
    out_dir: str | Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    strict: bool = False,
) -> JsonObject:
    """Tokenize the corpus of ``config``; returns the manifest.

    Equal settings give equal bytes, whatever the number of workers. Parts that an interrupted call finished are kept; a
    finished folder is returned as it is.

    Args:
        config: corpus, tokenizer folders (a run's own must be trained before) and ``data.shard_bytes``.
        out_dir: folder or fsspec URL of the shards and ``manifest.json``; None: ``data.prepared`` of ``config``.
        progress: called as the corpus is worked through.
        workers: processes; 1: this one, with the tokenizers' threads.
        strict: refuse bad rows instead of counting them.

    Raises:
        LclmError: missing or empty corpus, unusable tokenizer, a folder prepared with other settings, a full disk; or
            a bad row, if ``strict`` (``BadRow``).
    """
    plan = plan_preparation(config, out_dir)
    if (done := finished_manifest(plan)) is not None:
        return done
    _find_duplicates(plan, workers)
    make_parts(plan, plan.parts, progress, workers, strict)
    return finish(plan)


def prepare_worker_parts(
    config: Config, share: str, progress: Progress | None = None, workers: int = 1, strict: bool = False
) -> int:
    """Make the parts of worker k of n (``share`` "k/n") and no manifest; returns how many. Raises as prepare_corpus."""
    plan = plan_preparation(config)
    if any(one.dedup for one in config.corpus.resolved.values()):
        raise PreparedError(
            "dedup compares all parts with each other; use `lclm data prepare-on`, which does that first"
        )
    mine = parts_of_worker(plan.parts, share)
    make_parts(plan, mine, progress, workers, strict)
    return len(mine)


def make_parts(
    plan: Plan, parts: Sequence[Part], progress: Progress | None = None, workers: int = 1, strict: bool = False
) -> None:
    """Make ``parts``, in ``workers`` processes; finished ones are left alone. Raises as ``prepare_corpus``."""
    total, worked = sum(part.size for part in parts), 0
    for part in _made(plan, parts, min(workers, len(parts)), strict):
        worked += part.size
        if progress is not None:
            progress(worked, total)


def finish(plan: Plan) -> JsonObject:
    """Write the manifest and the rejects of a preparation whose parts are all made; returns the manifest.

    Raises:
        PreparedError: a part is missing, or no document can be trained on.
    """
    if changed := changed_entries(plan.storage, plan.parts, plan.key, plan.config):
        raise PreparedError(f"{shown_files(changed.values())} changed while they were prepared; prepare again")
    reports = [Report.read(plan.storage, part, plan.key) for part in plan.parts]
    missing = [part.stem for part, report in zip(plan.parts, reports, strict=True) if report is None]
    if missing:
        raise PreparedError(
            f"{len(missing)} of {len(plan.parts)} parts are not made yet, the first is {missing[0]}; prepare again"
        )
    manifest = _manifest(plan, [report for report in reports if report is not None])
    _remove_leftovers(plan, manifest)
    rejects = _rejects([report for report in reports if report is not None])
    _check_use(plan, manifest, rejects, [report for report in reports if report is not None])
    with plan.storage.refusals(MANIFEST):
        if (vocabulary := token_bytes(plan.tokenizers.decoder)) is not None:
            write_vocabulary(plan.storage, vocabulary)
        plan.storage.write(REJECTS, "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in rejects).encode())
        plan.storage.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def finished_manifest(plan: Plan) -> JsonObject | None:
    """The manifest of a folder that is whole; a shard of another size is deleted, so that it is made again."""
    try:
        manifest = read_manifest(plan.storage)
    except PreparedError:
        return None  # absent, damaged or of another format: made anew
    if manifest.get("key") != settings_key(plan.settings, manifest["format"]):
        changed = changed_since(plan.config, plan.storage)
        what = f" ({shown_files([changed])})" if changed else ""
        raise PreparedError(
            f"{plan.storage} was prepared from another corpus or with other settings{what}; delete it or set"
            " data.prepared to a new folder"
        )
    whole = True
    for shard in _shards(manifest):
        size = plan.storage.size(shard["file"])
        if size != shard["bytes"] or not plan.storage.exists(lengths_name(shard["file"])):
            logger.warning("%s is missing or truncated: writing it again", plan.storage.shown(shard["file"]))
            plan.storage.delete(shard["file"])
            whole = False
    return manifest if whole else None


def _check_collections(config: Config) -> None:
    known = config.corpus.resolved
    for name, source in config.data.sources.items():
        if source.collection not in known:
            raise LclmError(
                f"data.sources.{name}.collection={source.collection!r} is not one that is prepared;"
                f" {suggestion(source.collection, known)}"
            )


def _find_duplicates(plan: Plan, workers: int) -> None:
    """Run the stages of de-duplication on this machine, if there are any."""
    if stages := dedup_stages(plan.config, plan.parts, plan.storage, plan.key):
        from lclm_jax.data.prepare.datatrove_engine import run_stages

        logger.info("looking for duplicates")
        run_stages("local", stages, plan.storage.shown(f"logs/{plan.key[:16]}"), {"workers": workers})


def _check_files(plan: Plan) -> None:
    """Raw files that changed since parts were made of them: these parts are made again, unless a run may read them."""
    changed = changed_entries(plan.storage, plan.parts, plan.key, plan.config)
    if not changed:
        return
    names = shown_files(changed.values())
    if plan.storage.exists(MANIFEST):
        raise PreparedError(
            f"{names}: changed since {plan.storage} was prepared, and a run that reads it would get other rows; set"
            " data.prepared to a new folder, or delete it and prepare again"
        )
    if any(plan.config.corpus.resolved[part.collection].dedup for part in changed):
        raise PreparedError(
            f"{names}: changed since duplicates were looked for; delete {plan.storage} and prepare again"
        )
    logger.warning("%s: changed since an interrupted preparation; %d parts are made again", names, len(changed))
    for part in changed:
        plan.storage.delete(f"{part.stem}.json")


def _made(plan: Plan, parts: Sequence[Part], workers: int, strict: bool) -> Iterator[Part]:
    """Each part when it is made."""
    if workers > 1:
        yield from make_in_processes(parts, workers, _start_worker, plan.config, plan.storage, plan.key, strict)
        return
    context = PreparationContext.of(plan.config, plan.storage, plan.key, plan.tokenizers)
    for part in parts:
        make_part(part, context, strict)
        yield part


def _start_worker(config: Config, storage: Storage, key: str, strict: bool) -> Callable[[Part], Report]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores
    return partial(make_part, context=PreparationContext.of(config, storage, key), strict=strict)


def _manifest(plan: Plan, reports: Sequence[Report]) -> JsonObject:
    collections: JsonObject = {}
    for name in dict.fromkeys(part.collection for part in plan.parts):
        own = [(part, report) for part, report in zip(plan.parts, reports, strict=True) if part.collection == name]
        collections[name] = {split: _split_entry(split, own) for split in SPLITS}
    kinds = {name: plan.config.corpus.resolved[name].records for name in collections}
    kinds = {name: "documents" if records == "documents" else "chat" for name, records in kinds.items()}
    manifest = {"format": FORMAT, "key": plan.key, "settings": plan.settings, "kinds": kinds}
    return manifest | {"collections": collections, "files_left_out": _files_left_out(plan, reports)}


def _files_left_out(plan: Plan, reports: Sequence[Report]) -> JsonObject:
    """Collection -> files that could not be used, or not to their end; the collections that have such."""
    left_out: JsonObject = {}
    for part, report in zip(plan.parts, reports, strict=True):
        if report.files:
            left_out.setdefault(part.collection, []).extend(report.files)
    return left_out


def _split_entry(split: str, made: Sequence[tuple[Part, Report]]) -> JsonObject:
    totals: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    shards = []
    for part, report in made:
        if split in report.shards:
            shards.append(report.shards[split]._asdict())
            totals.update(report.totals[split])
        if split == part.splits[0]:  # what a row that is left out would have been in is not known
            counts.update(report.counts)
    tokens = {name: totals[name] for name in ("decoder_tokens", "encoder_tokens")}
    return {
        "records": sum(shard["records"] for shard in shards),
        **tokens,
        "counts": dict(sorted(counts.items())),
        "shards": shards,
    }


def _shards(manifest: JsonObject) -> Iterator[JsonObject]:
    for splits in manifest["collections"].values():
        for split in splits.values():
            yield from split["shards"]


def _rejects(reports: Sequence[Report]) -> list[JsonObject]:
    kept: dict[str, list[JsonObject]] = defaultdict(list)
    for report in reports:
        for reject in report.rejects:
            if len(kept[reject["reason"]]) < REJECTS_KEPT:
                kept[reject["reason"]].append(reject)
    return [reject for reason in sorted(kept) for reject in kept[reason]]


def _check_use(plan: Plan, manifest: JsonObject, rejects: Sequence[JsonObject], reports: Sequence[Report]) -> None:
    """Refuse a preparation without anything to train on; warn of names that repeat, and of splits that are empty."""
    corpus = plan.config.corpus
    wanted = dict(zip(SPLITS, (1, corpus.validation_share, corpus.held_out_share), strict=True))
    for name, entries in manifest["collections"].items():
        own = [report for part, report in zip(plan.parts, reports, strict=True) if part.collection == name]
        records = sum(entry["records"] for entry in entries.values())
        names = {one for report in own for one in report.names}
        if len(names) == 1 and records > 1:
            logger.warning(
                "%s: all %d records have the same name, %r, and so the same split; let columns.id (now %r) name a"
                " column that tells rows apart, or none",
                *(name, records, names.pop(), corpus.resolved[name].columns.id),
            )
        if 2 * (uncut := sum(entry["counts"].get("no_inner_cuts", 0) for entry in entries.values())) > records:
            logger.warning(
                "%s: %d of %d documents have no cut inside them, so no part of them can be compressed: both tokenizers"
                " must begin afresh at one place of a text; use tokenizers that split it into words",
                *(name, uncut, records),
            )
        empty = [split for split in SPLITS if wanted[split] and not entries[split]["records"]]
        if empty and records:
            logger.warning("%s: none of its %d records falls into %s", name, records, " or ".join(empty))
    for line in unclaimed(corpus, manifest["collections"]):
        logger.warning("%s", line)
    splits = [one["train"] for one in manifest["collections"].values()]
    files = [file for group in manifest["files_left_out"].values() for file in group]
    if not any(one["records"] for one in splits):
        counts = sum((Counter(one["counts"]) for one in splits), Counter())
        raise PreparedError(
            f"no document of the training split can be used ({left_out(counts, rejects, files)}); check the corpus, its"
            " columns and shares of splits, and the tokenizers"
        )


def _remove_leftovers(plan: Plan, manifest: JsonObject) -> None:
    """Delete shards that an interrupted preparation with other settings left under other names."""
    files = [shard["file"] for shard in _shards(manifest)]
    kept = {*files, *map(lengths_name, files), *(f"{part.stem}.json" for part in plan.parts)}
    kept |= set(map(sources_name, plan.parts))
    for collection in dict.fromkeys(part.collection for part in plan.parts):
        for name in plan.storage.names(collection):
            if "-of-" in name and name not in kept:
                logger.info("deleting %s, left by an interrupted preparation", plan.storage.shown(name))
                plan.storage.delete(name)


def train_run_tokenizer(config: Config) -> JsonObject:
    """Train the tokenizer of a run that names none, on the training split."""
    from lclm_jax.data.prepare.corpus import read_corpus
    from lclm_jax.data.prepare.reject_counter import RejectCounter, left_out
    from lclm_jax.text.tokenizer import Tokenizer
    from lclm_jax.text.train_tokenizer import train_tokenizer

    size = config.tokenizer.vocab_size
    if size is None:
        raise LclmError("tokenizer.vocab_size is null; set it, or name tokenizer.decoder")
    counter = RejectCounter()
    most = config.tokenizer.train_bytes
    documents = read_corpus(config.corpus, ("train",), counter, most, output_folders(config))
    texts = (document.text for document in documents)
    try:
        folder = train_tokenizer(texts, size, RunPaths(config).decoder_tokenizer, config.tokenizer.tools)
    except LclmError as error:
        raise LclmError(
            f"{error} ({left_out(counter.counts, counter.rejects, counter.files)})" if counter.counts else str(error)
        ) from None
    tokenizer = Tokenizer.from_folder(folder)
    logger.info("%d tokens in %s", tokenizer.vocab_size, tokenizer.folder)
    return {"vocab_size": tokenizer.vocab_size, "digest": tokenizer.digest}


def prepare_data(config: Config, workers: int | None = None, strict: bool = False) -> JsonObject:
    """Prepare the corpus of a run, after training its tokenizer if it has none yet; returns the manifest.

    ``workers``: processes; None: one per core that this job may use.
    """
    train_missing_tokenizer(config)
    manifest = prepare_corpus(config, None, log_progress(), workers or cores(), strict)
    for collection, splits in manifest["collections"].items():
        counts: Counter[str] = sum((Counter(split["counts"]) for split in splits.values()), Counter())
        noted = "".join(f", {reason} {count}" for reason, count in sorted(counts.items()))
        records = f"{splits['train']['records']:,}"
        logger.info("%s: %s records to train on; left out or cut:%s", collection, records, noted[1:] or " none")
        files = manifest.get("files_left_out", {}).get(collection, [])
        for file in files[:FILES_SHOWN]:
            shown = (collection, file["file"], file["reason"], file["fault"])
            logger.warning("%s: %s is left out, or its end: %s (%s)", *shown)
        if len(files) > FILES_SHOWN:
            logger.warning("%s: %d more such files are listed in %s", collection, len(files) - FILES_SHOWN, MANIFEST)
    return manifest


def train_missing_tokenizer(config: Config) -> bool:
    """Train the tokenizer of a run that names none and has none yet; returns whether it did."""
    trained = RunPaths(config).decoder_tokenizer / "tokenizer.json"
    if config.tokenizer.decoder is not None or trained.exists():
        return False
    train_run_tokenizer(config)
    return True

"""Corpus to prepared shards: tokenized once, by every tokenizer, free of the compression ratio."""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.prepare.corpus import SPLITS, output_folders
from lclm_jax.data.prepare.deduplication import dedup_stages
from lclm_jax.data.prepare.file_versions import changed_entries, shown_files, sources_name
from lclm_jax.data.prepare.parts import Part, Report, parts_of_worker
from lclm_jax.data.prepare.planning import Plan, finished_manifest, plan_preparation, shards_of
from lclm_jax.data.prepare.prepare_part import PreparationContext, make_part
from lclm_jax.data.prepare.reject_counter import left_out
from lclm_jax.data.prepare.rows.selection import unclaimed, without_values
from lclm_jax.data.prepare.workers import make_in_processes
from lclm_jax.data.store.shard_writer import LANGUAGE
from lclm_jax.data.store.shards import FORMAT, MANIFEST, REJECTS, lengths_name
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.data.store.vocabulary import token_bytes, write_vocabulary
from lclm_jax.errors import LclmError
from lclm_jax.machine import cores
from lclm_jax.progress import log_progress
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

REJECTS_KEPT = 100

"""Bad rows of each reason in the rejects file."""

FILES_SHOWN = 10
"""Files of a collection that are left out and named at the end; the manifest has all."""

Made = Sequence[tuple[Part, Report]]
"""Parts that are made, of all generations, in their order."""

Progress = Callable[[int, int], None]

"""Called with (bytes of corpus done, bytes in all)."""


def prepare_corpus(
    config: Config,
    out_dir: str | Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    strict: bool = False,
) -> JsonObject:
    """Tokenize the corpus of ``config``; returns the manifest.

    Equal settings give equal bytes, whatever the number of workers. Parts that an interrupted call finished are kept; a
    finished folder is returned as it is. Of a corpus to which files were added, only these are prepared.

    Args:
        config: corpus, tokenizer folders (a run's own must be trained before) and ``data.shard_bytes``.
        out_dir: folder or fsspec URL of the shards and ``manifest.json``; None: ``data.prepared`` of ``config``.
        progress: called as the corpus is worked through.
        workers: processes; 1: this one, with the tokenizers' threads.
        strict: refuse bad rows instead of counting them.

    Raises:
        LclmError: missing or empty corpus, unusable tokenizer, a folder prepared with other settings or from files that
            are gone or changed, a full disk; or a bad row, if ``strict`` (``BadRow``).
    """
    plan = plan_preparation(config, out_dir)
    if (done := finished_manifest(plan)) is not None:
        return done
    for one in plan.earlier:  # whole, but for what was damaged
        lost = [part for part in one.parts if Report.read(one.storage, part, one.key) is None]
        make_parts(one, lost, None, workers, strict)
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
    for part in _made(plan, parts, min(workers, len(parts)), strict) if parts else ():
        worked += part.size
        if progress is not None:
            progress(worked, total)


def finish(plan: Plan) -> JsonObject:
    """Write the manifest and the rejects of a preparation whose parts are all made; returns the manifest.

    Raises:
        PreparedError: a part is missing, or no document can be trained on.
    """
    changed: dict[Part, list[str]] = {}
    for one in plan.generations:
        changed |= changed_entries(one.storage, one.parts, one.key, one.config)
    if changed:
        raise PreparedError(f"{shown_files(changed.values())} changed while they were prepared; prepare again")
    found = [(part, Report.read(plan.storage, part, key)) for part, key in plan.all_parts]
    missing = [part.stem for part, report in found if report is None]
    if missing:
        raise PreparedError(
            f"{len(missing)} of {len(found)} parts are not made yet, the first is {missing[0]}; prepare again"
        )
    made = [(part, report) for part, report in found if report is not None]
    manifest = _manifest(plan, made)
    _remove_leftovers(plan, manifest)
    rejects = _rejects([report for _, report in made])
    _check_use(plan, manifest, rejects, made)
    with plan.storage.refusals(MANIFEST):
        if (vocabulary := token_bytes(plan.tokenizers.decoder)) is not None:
            write_vocabulary(plan.storage, vocabulary)
        plan.storage.write(REJECTS, "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in rejects).encode())
        plan.storage.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def _find_duplicates(plan: Plan, workers: int) -> None:
    """Run the stages of de-duplication on this machine, if there are any."""
    if stages := dedup_stages(plan.config, plan.parts, plan.storage, plan.key):
        from lclm_jax.data.prepare.datatrove_engine import run_stages

        logger.info("looking for duplicates")
        run_stages("local", stages, plan.storage.shown(f"logs/{plan.key[:16]}"), {"workers": workers})


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


def _manifest(plan: Plan, made: Made) -> JsonObject:
    collections = _collections(made)
    kinds = {name: plan.config.corpus.resolved[name].records for name in collections}
    kinds = {name: "documents" if records == "documents" else "chat" for name, records in kinds.items()}
    first = plan.generations[0]
    manifest = {"format": FORMAT, "key": first.key, "settings": first.settings, "kinds": kinds}
    manifest |= {"collections": collections, "files_left_out": _files_left_out(made)}
    return manifest | ({"generations": _generations(plan, made)} if plan.earlier else {})


def _collections(made: Made) -> JsonObject:
    collections: JsonObject = {}
    for name in dict.fromkeys(part.collection for part, _ in made):
        own = [(part, report) for part, report in made if part.collection == name]
        collections[name] = {split: _split_entry(split, own) for split in SPLITS}
    return collections


def _generations(plan: Plan, made: Made) -> list[JsonObject]:
    """What a run reads that began with each generation: so many of the shards of each split, from the first one on."""
    generations: list[JsonObject] = []
    stop = 0
    for one in plan.generations:
        stop += len(one.parts)
        until = {
            name: {split: entry | {"shards": len(entry["shards"])} for split, entry in splits.items()}
            for name, splits in _collections(made[:stop]).items()
        }
        generations.append({"key": one.key, "settings": one.settings, "collections": until})
    return generations


def _files_left_out(made: Made) -> JsonObject:
    """Collection -> files that could not be used, or not to their end; the collections that have such."""
    left_out: JsonObject = {}
    for part, report in made:
        if report.files:
            left_out.setdefault(part.collection, []).extend(report.files)
    return left_out


def _split_entry(split: str, made: Made) -> JsonObject:
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
    languages = {name.removeprefix(LANGUAGE): n for name, n in sorted(totals.items()) if name.startswith(LANGUAGE)}
    return {
        "records": sum(shard["records"] for shard in shards),
        **tokens,
        **({"languages": languages} if languages else {}),
        "counts": dict(sorted(counts.items())),
        "shards": shards,
    }


def _rejects(reports: Sequence[Report]) -> list[JsonObject]:
    kept: dict[str, list[JsonObject]] = defaultdict(list)
    for report in reports:
        for reject in report.rejects:
            if len(kept[reject["reason"]]) < REJECTS_KEPT:
                kept[reject["reason"]].append(reject)
    return [reject for reason in sorted(kept) for reject in kept[reason]]


def _check_use(plan: Plan, manifest: JsonObject, rejects: Sequence[JsonObject], made: Made) -> None:
    """Refuse a preparation without anything to train on; warn of names that repeat, and of splits that are empty."""
    corpus = plan.config.corpus
    wanted = dict(zip(SPLITS, (1, corpus.validation_share, corpus.held_out_share), strict=True))
    for name, entries in manifest["collections"].items():
        own = [report for part, report in made if part.collection == name]
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
    files = [shard["file"] for shard in shards_of(manifest)]
    parts = [part for part, _ in plan.all_parts]
    kept = {*files, *map(lengths_name, files), *(f"{part.stem}.json" for part in parts), *map(sources_name, parts)}
    for collection in dict.fromkeys(part.collection for part in parts):
        for name in plan.storage.names(collection):
            if "-of-" in name and name not in kept:
                logger.info("deleting %s, left by an interrupted preparation", plan.storage.shown(name))
                plan.storage.delete(name)


def train_run_tokenizer(config: Config) -> JsonObject:
    """Train the tokenizer of a run that names none, on the training split."""
    from lclm_jax.data.prepare.corpus import read_tokenizer_texts
    from lclm_jax.data.prepare.reject_counter import RejectCounter, left_out
    from lclm_jax.text.tokenizer import Tokenizer
    from lclm_jax.text.train_tokenizer import train_tokenizer

    size = config.tokenizer.vocab_size
    if size is None:
        raise LclmError("tokenizer.vocab_size is null; set it, or name tokenizer.decoder")
    counter = RejectCounter()
    texts = read_tokenizer_texts(config.corpus, counter, config.tokenizer.train_bytes, output_folders(config))
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
        noted = "".join(f", {reason} {count}" for reason, count in sorted(without_values(counts).items()))
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

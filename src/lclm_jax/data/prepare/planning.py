"""A preparation before it begins: what is to be made, and whether the folder holds it, or an earlier part of it.

A corpus may grow. What was prepared at once is a *generation*, with parts, settings and a key of its own; files that
were added become the next one, and nothing that was made before changes. So a folder grows exactly if the files of each
of its generations, as they are now, give the key that the generation was made with.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.config.base import suggestion
from lclm_jax.data.documents import Entry
from lclm_jax.data.prepare.file_versions import changed_entries, changed_since, entries_made, shown_files
from lclm_jax.data.prepare.parts import Listing, Part, list_corpus, plan_parts, preparation_settings, settings_key
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.prepare.rows.decontamination import Decontamination
from lclm_jax.data.store.shards import (
    FORMAT,
    generation_keys,
    holds_collections,
    lengths_name,
    read_manifest,
    shard_cache,
)
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.errors import LclmError
from lclm_jax.text.run_tokenizers import read_tokenizers
from lclm_jax.text.tokenizer import Tokenizers, check_vocabularies
from lclm_jax.types import JsonObject, ReadOnlyJson

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A preparation before it begins."""

    config: Config
    storage: Storage
    parts: tuple[Part, ...]
    tokenizers: Tokenizers
    settings: JsonObject
    key: str
    earlier: tuple["Plan", ...] = ()
    """The generations that were prepared before, of a corpus that has grown."""

    @property
    def generations(self) -> tuple["Plan", ...]:
        """All generations, the first one first."""
        return (*self.earlier, self)

    @property
    def all_parts(self) -> list[tuple[Part, str]]:
        """The parts of all generations, each with the key that it is made with."""
        return [(part, one.key) for one in self.generations for part in one.parts]


def plan_preparation(config: Config, out_dir: str | Path | None = None) -> Plan:
    """Look at the corpus and the tokenizers of ``config``, and at what the folder holds already.

    Raises:
        LclmError: missing or empty corpus, an unusable tokenizer, or files that are not those that the folder was
            prepared from.
    """
    # Fail before the work, not after it.
    storage = Storage(out_dir or RunPaths(config).prepared, shard_cache(config))
    tokenizers = read_tokenizers(config)
    _ = tokenizers.decoder.memory_ids
    check_vocabularies(config.model.decoder.vocab_size, config.model.encoder.vocab_size, tokenizers)
    _check_collections(config)
    Decontamination(config.corpus, RejectCounter())
    listed = list_corpus(config)
    plan = _plan(config, storage, tokenizers, listed)
    manifest = _stored_manifest(storage)
    if manifest is not None and generation_keys(manifest) != [settings_key(plan.settings, manifest["format"])]:
        plan = _grown(plan, listed, manifest)
    _check_files(plan, manifest)
    return plan


def finished_manifest(plan: Plan) -> JsonObject | None:
    """The manifest of a folder that is whole; a shard of another size is deleted, so that it is made again."""
    manifest = _stored_manifest(plan.storage)
    if manifest is None:
        return None
    whole = len(generation_keys(manifest)) == len(plan.generations)
    for shard in shards_of(manifest):
        size = plan.storage.size(shard["file"])
        if size != shard["bytes"] or not plan.storage.exists(lengths_name(shard["file"])):
            logger.warning("%s is missing or truncated: writing it again", plan.storage.shown(shard["file"]))
            plan.storage.delete(shard["file"])
            whole = False
    return manifest if whole else None


def shards_of(manifest: ReadOnlyJson) -> list[JsonObject]:
    """All shards that a manifest lists."""
    return [
        shard for splits in manifest["collections"].values() for split in splits.values() for shard in split["shards"]
    ]


def _stored_manifest(storage: Storage) -> JsonObject | None:
    try:
        return read_manifest(storage)
    except PreparedError:
        return None  # absent, damaged or of another format: made anew


def _plan(
    config: Config, storage: Storage, tokenizers: Tokenizers, listed: Mapping[str, list[Entry]], generation: int = 0
) -> Plan:
    parts = plan_parts(config, listed, generation)
    settings = preparation_settings(config, parts, tokenizers._asdict())
    return Plan(config, storage, tuple(parts), tokenizers, settings, settings_key(settings))


def _grown(plan: Plan, listed: Listing, manifest: JsonObject) -> Plan:
    """The plan of a corpus to which files were added since ``manifest``; raises ``PreparedError`` if it is another."""
    config, storage, keys = plan.config, plan.storage, generation_keys(manifest)
    made = entries_made(storage, manifest)
    for name, entries in listed.items():  # entries without a file are not written down
        first = next((g for g in range(len(keys)) if holds_collections(manifest, g, [name])), None)
        if first is not None:
            made[first].setdefault(name, set()).update((one.id, one.start) for one in entries if not one.path)
    generations: list[Plan] = []
    for number, key in enumerate(keys):
        own = {
            name: [e for e in entries if _place(e) in made[number].get(name, ())] for name, entries in listed.items()
        }
        found = _plan(config, storage, plan.tokenizers, own, number)
        if found.key != key:
            raise _other_corpus(plan, listed, made, manifest)
        generations.append(found)
    rest: Listing = {}
    for name, entries in listed.items():
        known = set().union(*(one.get(name, ()) for one in made))
        if new := [entry for entry in entries if _place(entry) not in known]:
            rest[name] = new
    for name in rest:
        if config.corpus.resolved[name].dedup and name in manifest["collections"]:
            raise PreparedError(
                f"{name}: {rest[name][0].id} is new, and dedup compares all files with each other; set data.prepared to"
                " a new folder, or add the files as a collection of their own"
            )
    if rest:
        entries = [entry for one in rest.values() for entry in one]
        logger.info("%s: adding %d files, %s..", storage, len({one.path for one in entries}), entries[0].id)
        generations.append(_plan(config, storage, plan.tokenizers, rest, len(keys)))
    *earlier, last = generations
    return Plan(config, storage, last.parts, last.tokenizers, last.settings, last.key, tuple(earlier))


def _place(entry: Entry) -> tuple[str, int]:
    return entry.id, entry.start


def _other_corpus(
    plan: Plan, listed: Listing, made: list[dict[str, set[tuple[str, int]]]], manifest: JsonObject
) -> PreparedError:
    """What makes the corpus another one than that of ``manifest``, as far as it can be told."""
    present = {(name, entry.id) for name, entries in listed.items() for entry in entries}
    known = {(name, file) for one in made for name, places in one.items() for file, _ in places}
    faults = [f"{name}: {file} is no longer there" for name, file in sorted(known - present)]
    faults += [one for one in changed_since(plan.config, plan.storage) if not one.endswith(" is new")]
    stored = manifest["settings"]
    others = [name for name in plan.settings if name != "files" and plan.settings[name] != stored.get(name)]
    if not faults and manifest["format"] < FORMAT:
        faults = [f"nothing can be added to a folder of format {manifest['format']}"]
    elif not faults and others:
        faults = [f"settings that differ: {', '.join(others)}"]
    what = f" ({shown_files([faults])})" if faults else ""
    return PreparedError(
        f"{plan.storage} was prepared from another corpus or with other settings; delete it or set data.prepared to a"
        f" new folder, as only added files can be prepared into it{what}"
    )


def _check_collections(config: Config) -> None:
    known = config.corpus.resolved
    for name, source in config.data.sources.items():
        if source.collection not in known:
            raise LclmError(
                f"data.sources.{name}.collection={source.collection!r} is not one that is prepared;"
                f" {suggestion(source.collection, known)}"
            )


def _check_files(plan: Plan, manifest: JsonObject | None) -> None:
    """Raw files that changed since parts were made of them: these parts are made again, unless a run may read them."""
    finished = 0 if manifest is None else len(generation_keys(manifest))
    for number, one in enumerate(plan.generations):
        changed = changed_entries(one.storage, one.parts, one.key, one.config)
        if not changed:
            continue
        names = shown_files(changed.values())
        if number < finished:
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

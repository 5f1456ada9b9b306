"""Whether raw files are still those that shards were made of.

A finished part has ``STEM.sources.json`` beside its report: of every file the size and times (of a remote one its
etag), and a digest of the bytes that the part was made of. Only where size or times differ are bytes compared.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from lclm_jax.config import CollectionConfig, Config
from lclm_jax.data.documents import Entry
from lclm_jax.data.prepare.corpus import list_collection, output_folders
from lclm_jax.data.prepare.parts import Part
from lclm_jax.data.prepare.readers import raw_bytes
from lclm_jax.data.prepare.readers.files import local_version
from lclm_jax.data.store.shards import generation_keys, read_manifest
from lclm_jax.data.store.storage import Storage
from lclm_jax.errors import LclmError
from lclm_jax.types import ReadOnlyJson

logger = logging.getLogger(__name__)

_ENDING = ".sources.json"
_THREADS = 8

Sources = dict[tuple[str, int], tuple[str, str]]
"""(name of a file, where the part begins in it) -> (version, digest)."""


def sources_name(part: Part) -> str:
    """Name of the file that says what ``part`` was made of."""
    return f"{part.stem}{_ENDING}"


def sources_of(part: Part, collection: CollectionConfig) -> Sources:
    """What ``part`` is about to be made of. Taken before it is read: a file that changes meanwhile is found later."""
    return {
        (entry.id, entry.start): (current_version(entry), _digest(entry, collection))
        for entry in (part.entries if collection.paths else ())
    }


def write_sources(storage: Storage, part: Part, key: str, sources: Sources) -> None:
    """Store ``sources`` of ``part``, made with settings ``key``; raises ``OSError``."""
    files = [[*place, *known] for place, known in sources.items()]
    storage.write(sources_name(part), json.dumps({"key": key, "files": files}, ensure_ascii=False).encode() + b"\n")


def changed_entries(storage: Storage, parts: Sequence[Part], key: str, config: Config) -> dict[Part, list[str]]:
    """Part -> names of its files that have changed since settings ``key`` made it; parts without any are left out.

    What older versions made says nothing of its files and counts as unchanged. Files that were only touched are noted,
    so that their bytes are not compared again.
    """
    changed: dict[Part, list[str]] = {}
    for part in parts:
        collection = config.corpus.resolved[part.collection]
        stored = _read(storage, sources_name(part), key) if collection.paths else {}
        suspects = [one for one in part.entries if stored and _differs(one, stored.get((one.id, one.start)))]
        if not suspects:
            continue
        found = _compare(suspects, stored, collection)
        if names := [entry.id for entry in suspects if not found[entry]]:
            changed[part] = names
        else:
            known = {(one.id, one.start): (current_version(one), stored[one.id, one.start][1]) for one in suspects}
            try:
                write_sources(storage, part, key, stored | known)
            except OSError as error:  # a finished folder may be read-only
                logger.debug("%s: %s", part.stem, error)
    return changed


def changed_since(config: Config, storage: Storage) -> list[str]:
    """What is wrong with each raw file that is not what ``storage`` was prepared from; none where no raw file is there.

    Raises:
        PreparedError: nothing was prepared.
    """
    manifest, faults = read_manifest(storage), []
    for name in manifest["collections"]:
        collection = config.corpus.resolved.get(name)
        stored = {place: known for one in _made_of(storage, name, manifest) for place, known in one.items()}
        if collection is None or not stored:
            continue
        try:
            entries = list_collection(collection, manifest["settings"]["shard_bytes"], output_folders(config))
        except LclmError as error:
            logger.info("%s: not compared with its files (%s)", name, error)
            continue
        known = {place[0] for place in stored}
        suspects = [one for one in entries if one.id in known and _differs(one, stored.get((one.id, one.start)))]
        same = _compare(suspects, stored, collection)
        changed = {entry.id for entry in suspects if not same[entry]}
        faults += [f"{name}: {file} has changed since it was prepared" for file in sorted(changed)]
        faults += [f"{name}: {file} is new" for file in sorted({entry.id for entry in entries} - known)]
    return faults


def entries_made(storage: Storage, manifest: ReadOnlyJson) -> list[dict[str, set[tuple[str, int]]]]:
    """Of each generation of a prepared folder: collection -> (name of a file, where an entry begins in it)."""
    by_collection = {name: _made_of(storage, name, manifest) for name in manifest["collections"]}
    count = len(generation_keys(manifest))
    return [{name: set(made[number]) for name, made in by_collection.items()} for number in range(count)]


def _made_of(storage: Storage, collection: str, manifest: ReadOnlyJson) -> list[Sources]:
    """What ``collection`` was made of, by generation."""
    made: dict[str, Sources] = {key: {} for key in generation_keys(manifest)}
    for file in storage.names(collection):
        if file.endswith(_ENDING):
            for key, sources in _read_any(storage, file).items():
                made.get(key, {}).update(sources)
    return list(made.values())


def shown_files(changed: Iterable[Sequence[str]]) -> str:
    """A few names of files for a message, and how many more there are."""
    names = sorted({name for group in changed for name in group})
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def current_version(entry: Entry) -> str:
    """The version of the file of ``entry`` now; of a remote one when it was listed."""
    return entry.version if "://" in entry.path else local_version(entry.path)


def _differs(entry: Entry, known: tuple[str, str] | None) -> bool:
    """Whether size or times of a file that is there are others than ``known``."""
    now = current_version(entry)
    return bool(now) and (known is None or known[0] != now)


def _compare(suspects: Sequence[Entry], stored: Sources, collection: CollectionConfig) -> Mapping[Entry, bool]:
    """Whether the bytes of each of ``suspects`` are still those that ``stored`` knows."""
    if suspects:
        logger.info("comparing %d files by content, as their times differ: %s..", len(suspects), suspects[0].id)

    def same(entry: Entry) -> bool:
        known = stored.get((entry.id, entry.start))
        return known is not None and known[1] != "" and known[1] == _digest(entry, collection)

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(suspects, pool.map(same, suspects), strict=True))


def _digest(entry: Entry, collection: CollectionConfig) -> str:
    """Digest of what a part reads of a local file; empty where it cannot be read, and for a remote file."""
    if "://" in entry.path:
        return ""
    digest = hashlib.sha256()
    try:
        for piece in raw_bytes(entry, collection):
            digest.update(piece)
    except OSError:
        return ""  # counted when it is read
    return digest.hexdigest()[:32]


def _read(storage: Storage, name: str, key: str) -> Sources:
    return _read_any(storage, name).get(key, {})


def _read_any(storage: Storage, name: str) -> dict[str, Sources]:
    """The key of what a part was made with -> its sources; none where nothing is known."""
    try:
        stored = json.loads(storage.read(name))
        return {stored["key"]: {(file, start): (version, digest) for file, start, version, digest in stored["files"]}}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return {}  # of an older version, or damaged

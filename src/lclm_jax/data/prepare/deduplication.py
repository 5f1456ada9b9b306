"""De-duplication by datatrove (extra ``[prepare]``): exact by a hash of the text, near by MinHash.

Signatures of every part, then what is equal among all parts, then a filter that each part applies as it is made. The
rank of a task is the rank of its part, so the result does not depend on who computes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lclm_jax.config import Config
from lclm_jax.data.documents import Document
from lclm_jax.data.prepare.datatrove_engine import Stage, engine_module
from lclm_jax.data.prepare.filters import part_documents
from lclm_jax.data.prepare.parts import Part
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.store.storage import Storage


@dataclass(frozen=True, repr=False)
class PartReader:
    """First step of a pipeline: the documents of the part whose rank is the task's."""

    config: Config
    parts: tuple[Part, ...]

    def __call__(self, data: object, rank: int, world_size: int) -> Iterator[Any]:
        """Documents of datatrove, in the order in which the part is made."""
        part = self.parts[rank]
        collection = self.config.corpus.resolved[part.collection]
        make = engine_module("datatrove.data").Document
        for document in part_documents(part, collection, self.config, RejectCounter()):
            yield make(text=document.text, id=document.id)


def dedup_stages(config: Config, parts: Sequence[Part], storage: Storage, key: str) -> list[Stage]:
    """What must run, in this order, before the parts of collections with ``dedup`` can be made; may be empty."""
    stages = []
    for name, collection in config.corpus.resolved.items():
        own = tuple(part for part in parts if part.collection == name)
        marker, folder = f"dedup/{key[:16]}/{name}/done", dedup_folder(storage, key, name)
        if collection.dedup is None or not own or storage.exists(marker):
            continue
        reader = PartReader(config, own)
        make = _near_stages if collection.dedup == "near" else _exact_stages
        stages += make(name, reader, folder, len(own))
        stages.append(Stage(f"{name}-done", [_Mark(storage, marker)], 1))
    return stages


def without_duplicates(
    documents: Iterable[Document], part: Part, dedup: str, folder: str, counter: RejectCounter
) -> Iterator[Document]:
    """The documents that are kept; the others are counted as ``duplicate``.

    Args:
        documents: those of ``part`` that its filters keep, in their order.
        part: where they are from.
        dedup: ``exact`` or ``near``.
        folder: ``dedup_folder`` of its collection.
        counter: counts.
    """
    make, seen, kept = engine_module("datatrove.data").Document, 0, 0

    def wrapped() -> Iterator[Any]:
        nonlocal seen
        for document in documents:
            seen += 1
            yield make(text=document.text, id=document.id, metadata={"document": document})

    if dedup == "near":
        step = engine_module("datatrove.pipeline.dedup").MinhashDedupFilter(f"{folder}/remove")
    else:
        exact = engine_module("datatrove.pipeline.dedup.exact_dedup")
        step = exact.ExactDedupFilter(f"{folder}/remove", _exact_config())
    for document in step.run(wrapped(), part.rank):
        kept += 1
        yield document.metadata["document"]
    counter.counts.update({"duplicate": seen - kept} if seen > kept else {})


@dataclass(frozen=True, repr=False)
class _Mark:
    """Last step: notes that the duplicates of a collection are known."""

    storage: Storage
    name: str

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        self.storage.write(self.name, b"")


def dedup_folder(storage: Storage, key: str, collection: str) -> str:
    """Where the signatures and duplicates of a collection are kept for settings ``key``."""
    return storage.shown(f"dedup/{key[:16]}/{collection}")


def _near_stages(name: str, reader: PartReader, folder: str, tasks: int) -> list[Stage]:
    dedup = engine_module("datatrove.pipeline.dedup")
    settings = engine_module("datatrove.pipeline.dedup.minhash").MinhashConfig()
    signatures, buckets = f"{folder}/signatures", f"{folder}/buckets"
    find = dedup.MinhashDedupBuckets(signatures, buckets, config=settings)
    return [
        Stage(f"{name}-signatures", [reader, dedup.MinhashDedupSignature(signatures, settings)], tasks),
        Stage(f"{name}-buckets", [find], settings.num_buckets),
        Stage(f"{name}-clusters", [dedup.MinhashDedupCluster(buckets, f"{folder}/remove", config=settings)], 1),
    ]


def _exact_stages(name: str, reader: PartReader, folder: str, tasks: int) -> list[Stage]:
    dedup = engine_module("datatrove.pipeline.dedup.exact_dedup")
    signatures, settings = f"{folder}/signatures", _exact_config()
    return [
        Stage(f"{name}-signatures", [reader, dedup.ExactDedupSignature(signatures, settings)], tasks),
        Stage(f"{name}-equal", [dedup.ExactFindDedups(signatures, f"{folder}/remove", settings)], 1),
    ]


def _exact_config() -> Any:
    return engine_module("datatrove.pipeline.dedup.exact_dedup").ExactDedupConfig(content_getter=_text)


def _text(document: Any) -> str:
    return document.text

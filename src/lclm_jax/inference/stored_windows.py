"""The encoder's vectors of windows, kept in a store between calls and shared with servers (extra ``[store]``)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.interop.engine_config import engine_config

if TYPE_CHECKING:
    from lclm_store import LatentStore


class StoredWindows:
    """Pooled vectors of one model's windows in a store.

    Args:
        store: the store, open.
        folder: the model's folder: its encoder's fingerprint is part of every key.
        dtype: in which the model computes.
        code: how vectors are kept; None: as ``dtype``, so that answers are the same with the store and without it.

    Raises:
        LclmError: the folder is no complete LCLM, or its LoRA is not merged.
    """

    def __init__(self, store: "LatentStore", folder: Path, dtype: str, code: str | None = None):
        from lclm_store import space

        self.store, self.code = store, code or dtype
        with store_errors():
            self.space = space(_fingerprint(folder), self.code)

    def keys(self, windows: Sequence[tuple[np.ndarray, int, int]]) -> list[str]:
        """Key of each window: (ids that the encoder reads, tokens of left context, tokens that are pooled)."""
        from lclm_store import window_key

        return [window_key(self.space, ids, skip, pooled) for ids, skip, pooled in windows]

    def get(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """Vectors of each window, float32 [latents, latent size]; None: the store has none."""
        return self.store.get_many(keys)

    def put(self, keys: Sequence[str], vectors: Sequence[np.ndarray]) -> None:
        """Keep vectors, as far as the store can be written."""
        self.store.put_many(zip(keys, (array.astype(np.float32) for array in vectors), strict=True), self.code)


def open_store(
    path: Path, max_bytes: int | None = None, ttl_seconds: float | None = None, must_exist: bool = False
) -> "LatentStore":
    """The store at ``path``, made if it is not there.

    Args:
        path: its file.
        max_bytes: least recently used vectors beyond this are dropped; None: none are.
        ttl_seconds: older vectors are encoded again; None: none are.
        must_exist: refuse to make a new one.

    Raises:
        LclmError: the extra is not installed, or the file is no store.
    """
    try:
        from lclm_store import LatentStore
    except ImportError:
        raise LclmError("a store needs the package lclm-serving: pip install 'lclm-jax[store]'") from None
    if must_exist and not path.is_file():
        raise LclmError(f"there is no store {path}; fill one with `lclm store add`")
    with store_errors():
        return LatentStore(path, max_bytes=max_bytes, ttl_seconds=ttl_seconds)


@contextmanager
def store_errors() -> Iterator[None]:
    """What a store refuses is an ``LclmError``."""
    from lclm_store import StoreError

    try:
        yield
    except StoreError as error:
        raise LclmError(str(error)) from None


def _fingerprint(folder: Path) -> str:
    path = folder / "config.json"
    if path.is_file() and not (folder / "lora").is_dir():
        found = json.loads(path.read_text(encoding="utf-8")).get("fingerprint")
        if found:
            return str(found)
    try:
        return str(engine_config(folder)["fingerprint"])
    except ValueError as error:
        raise LclmError(str(error)) from None

"""The encoder's vectors of windows, kept in a store between calls and shared with servers (extra ``[store]``)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.interop.engine_config import engine_config
from lclm_jax.types import JsonObject

if TYPE_CHECKING:
    from lclm_store import LatentStore


class StoredWindows:
    """Pooled vectors of one model's windows in a store.

    Args:
        store: the store, open.
        folder: the model's folder: its encoder's fingerprint is part of every key.
        model: what is computed; its ratio may differ from the folder's, and is then part of every key.
        code: how vectors are kept; None: in the dtype that the model computes in, so that answers are the same with the
            store and without it.

    Raises:
        LclmError: the folder is no complete LCLM, or its LoRA is not merged; its pooling or its mask was changed.
    """

    def __init__(self, store: "LatentStore", folder: Path, model: ModelConfig, code: str | None = None):
        from lclm_store import space

        self.store, self.code = store, code or model.compute_dtype
        own = _engine_config(folder)
        for name, value, exported in (
            ("pooling", model.pooling, own["pooling"]),
            ("mask", model.mask, own["encoder_mask_type"]),
        ):
            if value != exported:
                raise LclmError(f"{name}={value} is not the {exported} of {folder}, whose latents the store keeps")
        self._ratio = None if model.ratio == own["compression_ratio"] else model.ratio
        with store_errors():
            self.space = space(own["fingerprint"], self.code)

    def keys(self, windows: Sequence[tuple[np.ndarray, int, int]]) -> list[str]:
        """Key of each window: (ids that the encoder reads, tokens of left context, tokens that are pooled)."""
        from lclm_store import window_key

        return [window_key(self.space, ids, skip, pooled, self._ratio) for ids, skip, pooled in windows]

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


def _engine_config(folder: Path) -> JsonObject:
    """``config.json`` at the top of ``folder``, or what it would hold."""
    path = folder / "config.json"
    if path.is_file() and not (folder / "lora").is_dir():
        found: JsonObject = json.loads(path.read_text(encoding="utf-8"))
        if found.get("fingerprint"):
            return found
    try:
        return engine_config(folder)
    except ValueError as error:
        raise LclmError(str(error)) from None

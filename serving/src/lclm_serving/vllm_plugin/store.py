"""The store of latents inside the model: what it has is not encoded, what is encoded it gets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.logger import init_logger

from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError
from lclm_serving.windows import Window
from lclm_store import LatentStore, StoreError, space, window_key

logger = init_logger("vllm.lclm")

OPTIONS = {"path", "code", "max_bytes", "ttl_seconds", "read_only"}
"""Keys of ``lclm_store`` in vLLM's ``--additional-config``; a text alone is the path."""


class WindowStore:
    """Pooled vectors of windows.

    Args:
        options: the value of ``lclm_store``.
        config: of the model.
        dtype: in which the model computes: vectors are kept so, unless ``code`` says otherwise, and answers are the
            same with the store and without it.

    Raises:
        LclmError: an unknown option, or a model without a fingerprint.
    """

    def __init__(self, options: Any, config: LclmConfig, dtype: torch.dtype):
        values = {"path": options} if isinstance(options, str) else dict(options)
        unknown = values.keys() - OPTIONS
        if unknown or not values.get("path"):
            raise LclmError(f"lclm_store={options!r}: write a path, or an object of {', '.join(sorted(OPTIONS))}")
        default = "bfloat16" if dtype == torch.bfloat16 else "float32"
        self.code = values.pop("code", default)
        self._space, self._ratio = space(config.fingerprint, self.code), config.compression_ratio
        self._store: LatentStore | None = None
        path = Path(values.pop("path"))
        try:
            self._store = LatentStore(path, **values)
        except StoreError as error:
            # A server that answers more slowly is better than none.
            logger.error("LCLM store: %s; windows are encoded, and none is stored", error)

    def get(self, windows: Sequence[Window]) -> tuple[list[str], list[torch.Tensor | None]]:
        """The key of each window, and its vectors, float32 [latents, latent size], or None."""
        keys = [
            window_key(self._space, w.ids, w.skip, w.pooled, None if w.ratio == self._ratio else w.ratio)
            for w in windows
        ]
        if self._store is None:
            return keys, [None] * len(keys)
        found = self._store.get_many(keys)
        return keys, [None if array is None else torch.from_numpy(array) for array in found]

    def put(self, keys: Sequence[str], pooled: Sequence[torch.Tensor]) -> int:
        """Keep vectors; returns how many were lost."""
        if self._store is None:
            return 0
        arrays = [some.detach().float().cpu().numpy() for some in pooled]
        return len(keys) - self._store.put_many(zip(keys, arrays, strict=True), self.code)

    @property
    def damaged(self) -> int:
        """Damaged entries so far."""
        return 0 if self._store is None else self._store.counts.damaged

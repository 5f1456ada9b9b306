"""What one ``memory`` item is: a window, or a whole span where the adapter attends over it.

An item is an int64 array ``[ratio, skip, pooled, *ids]``: tokens of one latent, the tokens that the encoder reads, and
which of them become latents.
Windows know nothing of each other, so they can be cached, stored and scheduled one by one: a document that grows at its
end changes its last window alone.
"""

import hashlib

import numpy as np

from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError
from lclm_serving.windows import Window, checked_ratio, latent_count, windows_of

HEAD = 3
"""Numbers before the ids."""


def by_span(config: LclmConfig) -> bool:
    """Whether an item is a whole span."""
    return config.adapter_type != "mlp"


def items_of(span: np.ndarray, config: LclmConfig, ratio: int | None = None) -> list[np.ndarray]:
    """The items of a span of encoder ids [tokens]; ``ratio``: tokens of one latent, None: as in ``config``."""
    ratio = config.compression_ratio if ratio is None else ratio
    if by_span(config):
        return [np.concatenate([[ratio, 0, len(span)], span])]
    return [np.concatenate([[ratio, w.skip, w.pooled], w.ids]) for w in windows_of(span, config, ratio)]


def windows_of_item(item: np.ndarray, config: LclmConfig) -> list[Window]:
    """What the encoder reads for an item."""
    if by_span(config):
        return windows_of(item[HEAD:], config, int(item[0]))
    return [Window(item[HEAD:], int(item[1]), int(item[2]), int(item[0]))]


def latents_of_item(item: np.ndarray) -> int:
    """Latents of an item."""
    return latent_count(int(item[2]), int(item[0]))


def check_item(item: object, config: LclmConfig) -> np.ndarray:
    """An item that a caller of vLLM's Python interface made; raises ``LclmError`` unless it can be one."""
    array = np.asarray(item)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) <= HEAD:
        raise LclmError(
            "a memory item is an array [ratio, skip, pooled, *ids] of integers; write memory tags in the text"
        )
    ratio, skip, pooled, *ids = array.tolist()
    checked_ratio(config, ratio)
    size = len(ids)
    vocabulary = config.encoder_config.vocab_size
    if skip < 0 or pooled < 1 or skip + pooled > size or min(ids) < 0 or max(ids) >= vocabulary:
        raise LclmError(
            f"a memory item of {size} ids skips {skip}, pools {pooled}; it must pool a part of ids below {vocabulary}"
        )
    return array.astype(np.int64)


def item_key(item: np.ndarray, config: LclmConfig, model: str) -> str:
    """Content address of an item for vLLM's caches: the encoder that reads it, then what it reads."""
    digest = hashlib.sha256(np.ascontiguousarray(item, "<i8").tobytes()).hexdigest()
    return f"{config.fingerprint or model}-{digest}"

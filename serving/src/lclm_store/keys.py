"""Content addresses: which model read a window, and what it read."""

import hashlib

import numpy as np

from lclm_store.codes import CODES
from lclm_store.errors import StoreError


def space(fingerprint: str, code: str) -> str:
    """The part of a key that all windows of one encoder share.

    Args:
        fingerprint: of the encoder: its weights, its tokenizer and how it pools (the key of an export's
            ``config.json``).
        code: how vectors are kept, one of ``codes.CODES``; it is part of the key, so that a model which computes in
            float32 never gets rounded vectors by accident.
    """
    if code not in CODES:
        raise StoreError(f"code={code!r} is unknown; use one of {', '.join(CODES)}")
    if not fingerprint:
        raise StoreError("the model has no fingerprint, so its latents cannot be told from another's; add its config")
    return f"pooled/{code}/{fingerprint}"


def window_key(space: str, ids: np.ndarray, skip: int = 0, count: int | None = None, ratio: int | None = None) -> str:
    """Key of one window.

    Args:
        space: see ``space``.
        ids: all tokens that the encoder reads, context included, integers [tokens].
        skip: tokens of context before the part that is pooled.
        count: tokens of that part; None: all that follow.
        ratio: tokens of one vector where it is not the ratio of the fingerprint; None: it is.
    """
    count = len(ids) - skip if count is None else count
    head = [skip, count] if ratio is None else [-ratio, skip, count]  # no other key begins below zero
    read = np.concatenate([head, ids]).astype("<i4")
    return f"{space}/{hashlib.sha256(read.tobytes()).hexdigest()}"

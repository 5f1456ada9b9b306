"""Prepared shards: storage, columns, records, reading and writing."""

from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.shards import PreparedSplit

__all__ = ["PreparedSplit", "column_text"]

"""Prepared shards: storage, columns, records, reading and writing."""

from lclm_jax.data.store.shards import PreparedSplit, column_text

__all__ = ["PreparedSplit", "column_text"]

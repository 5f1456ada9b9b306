"""A store of what an LCLM's encoder made of each window of text: content-addressed, in one SQLite file.

It needs numpy and nothing else. A window that is missing, damaged or too old is a miss; whoever asked encodes it.
"""

from lclm_store.documents import Document, text_digest
from lclm_store.errors import StoreError
from lclm_store.keys import space, window_key
from lclm_store.store import LatentStore, Statistics

__all__ = ["Document", "LatentStore", "Statistics", "StoreError", "space", "text_digest", "window_key"]

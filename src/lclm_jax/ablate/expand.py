"""Variants of a study."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """One row of a study; the first is the baseline."""

    name: str
    overrides: Mapping[str, Any]
    levels: Mapping[str, str]
    """Factor -> label of its value."""

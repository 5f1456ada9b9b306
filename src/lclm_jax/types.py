"""Types that many packages name: JSON values and trees of arrays. Importing it starts no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    pass

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
"""A value that JSON can write."""

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as read: its values are checked where they are used."""

PyTree: TypeAlias = Any
"""A tree of arrays, shapes, shardings or labels. JAX has no static type for trees."""

Ref: TypeAlias = Any
"""A block of memory in a Pallas kernel, read and written by index. JAX has no public static type for it."""

Params: TypeAlias = dict[str, PyTree]
"""Parameters of a model: a plain nested dict of arrays, named by path (``decoder/layers/attn/q/kernel``)."""

ReadOnlyJson: TypeAlias = Mapping[str, Any]
"""As ``JsonObject``, not written to."""

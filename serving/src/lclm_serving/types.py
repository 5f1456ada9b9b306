"""Types that several modules name."""

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object: keys are strings, values anything that JSON has."""

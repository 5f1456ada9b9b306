"""What every branch of the configuration tree shares: frozen, typed, closed to unknown keys."""

from pydantic import BaseModel, ConfigDict, Field


class Tree(BaseModel):
    """A frozen node of the configuration tree; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def key(default, doc: str, **limits):
    """Declare one key: its only default, its documentation, and its limits (``gt``, ``ge``, ``le``...)."""
    return Field(default, description=doc, **limits)


def required(doc: str, **limits):
    """Declare one key that a YAML must set."""
    return Field(description=doc, **limits)

"""What every branch of the configuration tree shares: frozen, typed, closed to unknown keys."""

import difflib
from collections.abc import Callable, Iterable

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


def suggestion(name: str, known: Iterable[str]) -> str:
    """A clause such as ``did you mean 'steps'?``, or the list of what is known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


def one_of(registry: Iterable[str]) -> Callable[[str], str]:
    """A validator that lets the names of ``registry`` pass."""

    def check(name: str) -> str:
        if name not in registry:
            raise ValueError(f"{name!r} is unknown; use one of {', '.join(registry)}")
        return name

    return check

"""Records of documents: which windows a text was cut into, and where each lies in it."""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text as one encoder read it."""

    digest: str
    """``text_digest`` of the text."""
    space: str
    """The encoder, see ``keys.space``."""
    title: str
    """Its name for people, such as a path."""
    keys: tuple[str, ...]
    """Keys of its windows, in order."""
    places: tuple[tuple[int, int], ...]
    """First character of each window and the one after its last."""

    def json(self) -> str:
        """What is kept of it beside its digest, space and title."""
        heads = [key.removeprefix(self.space + "/") for key in self.keys]
        return json.dumps({"windows": heads, "places": self.places}, separators=(",", ":"))

    @classmethod
    def from_row(cls, digest: str, space: str, title: str, body: str) -> "Document":
        """The inverse of ``json``; raises ``ValueError``, ``KeyError`` or ``TypeError`` on damaged text."""
        values = json.loads(body)
        places = tuple((int(start), int(stop)) for start, stop in values["places"])
        return cls(digest, space, title, tuple(f"{space}/{head}" for head in values["windows"]), places)


def text_digest(text: str) -> str:
    """SHA-256 of a text: equal digests mean equal texts."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

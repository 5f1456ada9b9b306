"""Marks on a message that say whether to train on it, or on parts of it: OpenAI's, Mistral's, Axolotl's, ms-swift's."""

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

MARKERS = ("weight", "train", "training", "loss")
"""Keys of a message; 0 and false: no loss on it, 1 and true: loss."""
DETAILS = ("train_detail", "training_detail")
"""Keys of a message that list parts of its content: ``begin_offset`` and ``end_offset`` (characters, both included) and
``train``; what no part names has the loss of its message (Axolotl)."""


class LossMarkerError(LclmError):
    """A mark that cannot be honoured; the message names the key, its value and the rule."""


def is_trained_on(message: ReadOnlyJson) -> bool:
    """Whether the assistant's ``message`` has loss: unless a mark says no.

    Raises:
        LossMarkerError: A mark is neither 0, 1, true nor false; two contradict each other; one asks for loss on another
            role's message, as does a list of parts.
    """
    if message["role"] != "assistant" and (detail := next((name for name in DETAILS if message.get(name)), None)):
        raise LossMarkerError(f"{detail} on a message of role {message['role']!r:.40}: only replies are trained on")
    marks = {name: message[name] for name in MARKERS if message.get(name) is not None}
    for name, value in marks.items():
        if not (isinstance(value, bool | int | float) and value in (0, 1)):
            raise LossMarkerError(f"{name}={value!r:.60}: a message is trained on (1, true) or not (0, false)")
    if len({bool(value) for value in marks.values()}) > 1:
        raise LossMarkerError(f"{marks} say two things about one message; keep one of them")
    if any(marks.values()) and message["role"] != "assistant":
        raise LossMarkerError(f"{marks} on a message of role {message['role']!r:.40}: only replies are trained on")
    return all(marks.values())


def untrained_parts(message: ReadOnlyJson) -> list[tuple[int, int]]:
    """Characters ``[start, stop)`` of the content that have no loss though the message has, in order.

    Raises:
        LossMarkerError: A part is no object of two offsets and a mark, lies outside the content, or begins before the
            last one ends.
    """
    found = [name for name in DETAILS if message.get(name)]
    if not found:
        return []
    if len(found) > 1:
        raise LossMarkerError(f"{' and '.join(found)} on one message; keep one of them")
    parts, before, size = message[found[0]], 0, len(message["content"])
    without = []
    for number, part in enumerate(parts if isinstance(parts, list) else [parts]):
        begin, end, wanted = _read_part(part, f"{found[0]}[{number}]")
        if not before <= begin <= end < size:
            raise LossMarkerError(
                f"{found[0]}[{number}]: characters {begin} to {end} of a content of {size}; parts lie in it, in order,"
                " without overlap"
            )
        before = end + 1
        if not wanted:
            without.append((begin, end + 1))
    return without


def _read_part(part: object, name: str) -> tuple[int, int, bool]:
    """First and last character of a part, and whether it has loss."""
    if isinstance(part, dict):
        begin, end, wanted = (part.get(key) for key in ("begin_offset", "end_offset", "train"))
        if type(begin) is int and type(end) is int and isinstance(wanted, bool):
            return begin, end, wanted
    raise LossMarkerError(
        f"{name}={part!r:.80}: a part is {{begin_offset: characters, end_offset: of its last, train: true or false}}"
    )


def without_markers(message: ReadOnlyJson) -> JsonObject:
    """``message`` without marks, as a template gets it."""
    return {name: value for name, value in message.items() if name not in (*MARKERS, *DETAILS)}

"""Marks on a message that say whether to train on it: those of OpenAI, Mistral (weight), Axolotl, ms-swift."""

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

MARKERS = ("weight", "train", "training", "loss")
"""Keys of a message; 0 and false: no loss on it, 1 and true: loss."""
_PARTIAL = ("train_detail", "training_detail")


class LossMarkerError(LclmError):
    """A mark that cannot be honoured; the message names the key, its value and the rule."""


def is_trained_on(message: ReadOnlyJson) -> bool:
    """Whether the assistant's ``message`` has loss: unless a mark says no.

    Raises:
        LossMarkerError: A mark is neither 0, 1, true nor false; two contradict each other; one asks for loss on another
            role's message, or on a part of the message alone.
    """
    for name in _PARTIAL:
        if message.get(name):
            raise LossMarkerError(f"{name}: a loss on parts of a message is not supported; remove the key or the row")
    marks = {name: message[name] for name in MARKERS if message.get(name) is not None}
    for name, value in marks.items():
        if not (isinstance(value, bool | int | float) and value in (0, 1)):
            raise LossMarkerError(f"{name}={value!r:.60}: a message is trained on (1, true) or not (0, false)")
    if len({bool(value) for value in marks.values()}) > 1:
        raise LossMarkerError(f"{marks} say two things about one message; keep one of them")
    if any(marks.values()) and message["role"] != "assistant":
        raise LossMarkerError(f"{marks} on a message of role {message['role']!r:.40}: only replies are trained on")
    return all(marks.values())


def without_markers(message: ReadOnlyJson) -> JsonObject:
    """``message`` without marks, as a template gets it."""
    return {name: value for name, value in message.items() if name not in (*MARKERS, *_PARTIAL)}

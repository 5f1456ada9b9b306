"""Compact codings of integer columns: what a column holds decides how it is written; all of them are bytes.

- ``varint``: ids. Seven bits a byte, the lowest first, the high bit set on all bytes of a number but its last (LEB128).
  Vocabularies of byte pairs are ordered by frequency, so that common tokens take one or two bytes.
- ``bits``: ascending places. Bit k of byte k // 8, the lowest first, is set where k is one of them.
- ``deltas``: ascending places far apart. The first and the differences, as varints.
- ``flags``: mostly zeros, else up to three bits. A varint for each other value, 8 * its distance from the one before
  plus itself, and one for the end of the column.

Every coding is free of context, so lists of many records stand end to end in a file and any of them is read alone.
"""

from collections.abc import Callable

import numpy as np

from lclm_jax.data.store.columns import Ragged
from lclm_jax.errors import LclmError

_FLAG_BITS = 3
_MAX_VARINT = 5


def encode_varints(values: np.ndarray) -> np.ndarray:
    """``values`` (integers [values] from 0 to 2**32 - 1) as uint8 [bytes]."""
    numbers = np.asarray(values).astype(np.uint32)
    widths = np.ones(numbers.size, np.int64)
    for extra in range(1, _MAX_VARINT):
        widths += numbers >= np.uint64(1) << np.uint64(7 * extra)
    starts = np.cumsum(widths) - widths
    found = np.empty(int(widths.sum()), np.uint8)
    found[starts] = numbers & 127
    rest = np.arange(numbers.size)
    for place in range(1, int(widths.max(initial=1))):
        rest = rest[widths[rest] > place]
        found[starts[rest] + place - 1] |= 128
        found[starts[rest] + place] = numbers[rest] >> np.uint32(7 * place) & 127
    return found


def decode_varints(data: np.ndarray) -> np.ndarray:
    """The numbers that ``encode_varints`` wrote as uint8 [bytes], uint32 [values].

    Raises:
        LclmError: The last number has no end, or one is too long.
    """
    more = data >= 128
    place = np.zeros(data.size, np.uint8)  # of each byte in its number
    run = more[:-1]
    for count in range(1, _MAX_VARINT + 1):  # bytes before one that belong to its number
        if not run.any():
            break
        place[count:] += run
        run = run[1:] & more[: -count - 1]
    if more[-1:].any() or place.max(initial=0) >= _MAX_VARINT:
        raise LclmError(f"a column of {data.size} bytes is not made of whole variable-length integers")
    parts = (data & 127).astype(np.uint32)
    parts <<= 7 * place
    starts = np.flatnonzero(place == 0)
    numbers: np.ndarray = np.add.reduceat(parts, starts, dtype=np.uint32) if starts.size else parts
    return numbers


def _encode_bits(places: np.ndarray) -> np.ndarray:
    if len(places) and (int(places[0]) < 0 or (np.diff(places.astype(np.int64)) <= 0).any()):
        raise LclmError(f"{len(places)} places that do not ascend cannot be stored as bits")
    bits = np.zeros(int(places[-1]) + 1 if len(places) else 0, bool)
    bits[places] = True
    return np.packbits(bits, bitorder="little")


def _encode_deltas(places: np.ndarray) -> np.ndarray:
    return encode_varints(np.diff(np.asarray(places, np.int64), prepend=0))


def _encode_flags(flags: np.ndarray) -> np.ndarray:
    if flags.size and int(flags.max()) >> _FLAG_BITS:
        raise LclmError(f"flags of a cut reach {int(flags.max())}; this format holds {_FLAG_BITS} bits")
    places = np.append(np.flatnonzero(flags), flags.size)
    values = np.append(flags[places[:-1]], 0).astype(np.int64)
    return encode_varints((np.diff(places, prepend=0) << _FLAG_BITS) | values)


def _set_bits(data: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(data, bitorder="little").view(bool))


def _decode_bits(data: Ragged) -> Ragged:
    bits = _set_bits(data.values)
    counts = np.diff(np.searchsorted(bits, 8 * data.offsets))
    return Ragged.from_sizes(counts, bits - np.repeat(8 * data.offsets[:-1], counts))


def _decode_varint_lists(data: Ragged) -> Ragged:
    ended = np.append(0, np.cumsum(data.values < 128))
    return Ragged(ended[data.offsets], decode_varints(data.values).astype(np.int64))


def _decode_deltas(data: Ragged) -> Ragged:
    lists = _decode_varint_lists(data)
    totals = np.append(0, np.cumsum(lists.values))
    return Ragged(lists.offsets, totals[1:] - np.repeat(totals[lists.offsets[:-1]], lists.sizes))


def _decode_flags(data: Ragged) -> Ragged:
    lists = _decode_varint_lists(data)
    steps, values = lists.values >> _FLAG_BITS, lists.values & (1 << _FLAG_BITS) - 1
    sizes = Ragged(lists.offsets, steps).sums()
    flags = np.zeros(int(sizes.sum()) + 1, np.int64)  # one place more: the end of the last list
    flags[np.cumsum(steps)[values > 0]] = values[values > 0]
    return Ragged.from_sizes(sizes, flags[:-1])


CODINGS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Ragged], Ragged]]] = {
    "varint": (encode_varints, _decode_varint_lists),
    "bits": (_encode_bits, _decode_bits),
    "deltas": (_encode_deltas, _decode_deltas),
    "flags": (_encode_flags, _decode_flags),
}
"""Name -> how one list is written (to uint8), and how many lists of bytes are read at once (to int64)."""


def decode_list(coding: str, data: np.ndarray) -> np.ndarray:
    """One list, written with ``coding`` as uint8 [bytes]; int64 [values], or uint32 for ``varint``."""
    if coding == "varint":
        return decode_varints(data)
    if coding == "bits":
        return _set_bits(data)
    return CODINGS[coding][1](Ragged(np.array([0, data.size]), data)).values

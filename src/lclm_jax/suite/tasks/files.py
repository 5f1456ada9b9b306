"""Published files of benchmarks: where they lie, their rows, and the first row that has another layout, by place."""

import csv
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.types import Json, JsonObject

Keys = Mapping[str, type | tuple[type, ...]]
"""Key -> type of its value."""
_FETCH_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError)
_NAMES: dict[type, str] = {str: "text", list: "a list", dict: "an object", int: "a whole number", float: "a number"}


class LayoutError(LclmError):
    """A file of another layout; the message names the file, the place in it, the key and what is expected."""


def find_file(data: str, *names: str) -> Path:
    """The file ``data`` itself, or the first of ``names`` in the folder (or hub data set) ``data`` or its ``data/``.

    Raises ``LclmError`` if there is none.
    """
    path = Path(data)
    if path.is_file():
        return path
    if not path.is_dir():
        path = _fetch(data, names)
    for name in names:
        for place in (path / name, path / "data" / name):
            if place.is_file():
                return place
    raise LclmError(f"{data} holds no {' or '.join(names)}; put the published file there, or name it")


def _fetch(data: str, names: Sequence[str]) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", data):
        raise LclmError(f"{data} is neither a file, a folder nor a hub data set (OWNER/NAME); check the path")
    wanted = [pattern for name in names for pattern in (name, f"data/{name}")]
    try:
        return Path(snapshot_download(data, repo_type="dataset", allow_patterns=wanted))
    except _FETCH_ERRORS as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LclmError(
            f"there is no folder {data}, and no data set of that id can be fetched ({line}); download it and name its"
            " folder"
        ) from None


def json_lines(path: Path, keys: Keys) -> Iterator[tuple[str, JsonObject]]:
    """Place and values of every line; blank lines are left out. Raises ``LayoutError``."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, check(_parse(line, place), keys, place)


def json_array(path: Path, keys: Keys) -> Iterator[tuple[str, JsonObject]]:
    """Place and values of every entry of one JSON array. Raises ``LayoutError``."""
    entries = _parse(path.read_bytes(), str(path))
    if not isinstance(entries, list):
        raise LayoutError(f"{path} holds {_name(entries)} instead of a list; download the published file again")
    for number, entry in enumerate(entries):
        yield f"{path}, entry {number}", check(entry, keys, f"{path}, entry {number}")


def json_object(path: Path) -> JsonObject:
    """One JSON object. Raises ``LayoutError``."""
    values = _parse(path.read_bytes(), str(path))
    return check(values, {}, str(path))


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, JsonObject]]:
    """Place and values of every row of a CSV file with a header. Raises ``LayoutError``."""
    limit = csv.field_size_limit(2**31 - 1)  # a context can be far longer than the default of 131,072 characters
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise LayoutError(f"{path}, line 1: lacks the column {missing[0]}; it has {reader.fieldnames}")
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                yield place, check(row, dict.fromkeys(columns, str), place)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LayoutError(f"{path} is no CSV file in UTF-8: {error}; download it again") from None
    finally:
        csv.field_size_limit(limit)


def check(values: object, keys: Keys, place: str) -> JsonObject:
    """``values`` as an object with ``keys`` of the right types; raises ``LayoutError``."""
    if not isinstance(values, dict):
        raise LayoutError(f"{place}: {_name(values)} instead of an object; download the published file again")
    for key, kind in keys.items():
        if key not in values:
            raise LayoutError(f"{place}: lacks the key {key}; it has {', '.join(map(str, values))}")
        if not isinstance(values[key], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(_NAMES.get(one, one.__name__) for one in kinds)
            raise LayoutError(f"{place}: {key} is {_name(values[key])} instead of {wanted}")
    return values


def select(samples: Sequence[Sample], count: int | None, seed: int) -> list[Sample]:
    """``count`` of the samples, drawn by ``seed``, in the order of the file; None: all."""
    if count is None or count >= len(samples):
        return list(samples)
    places = random.Random(seed).sample(range(len(samples)), count)  # noqa: S311 - a draw of samples, no secret
    return [samples[place] for place in sorted(places)]


def _parse(text: bytes, place: str) -> Json:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LayoutError(f"{place}: not UTF-8 ({error.reason} at byte {error.start}); download it again") from None
    except ValueError as error:
        raise LayoutError(f"{place}: not JSON ({error}); download it again") from None


def _name(value: object) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)

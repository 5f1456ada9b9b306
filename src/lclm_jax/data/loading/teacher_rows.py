"""A teacher's largest logits, stored once for the rows of a stage (``lclm data teach``).

A folder::

    teacher.json                what the logits were made for and with
    rows/000/000012.safetensors rows of one file, in plain columns

Columns of a file: ``counts`` (int32, positions with a teacher of each of its rows), ``places`` (int32, these
positions), ``ids`` (uint16 or uint32, K of each) and ``logits`` (float16, of these: logarithms of probabilities,
largest first).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lclm_jax.errors import LclmError
from lclm_jax.files import replacing, write_json
from lclm_jax.types import JsonObject

_IN_FOLDER = 1000
_OPEN_FILES = 8


class TaughtRows(NamedTuple):
    """What a teacher says of some rows."""

    counts: np.ndarray
    """int32 [rows]: positions of each row that have a teacher."""
    places: np.ndarray
    """int32 [positions]: these positions, row by row."""
    ids: np.ndarray
    """Integers [positions, K]."""
    logits: np.ndarray
    """float16 [positions, K]."""

    @classmethod
    def of(cls, there_BS: np.ndarray, ids_BSK: np.ndarray, logits_BSK: np.ndarray, vocab_size: int) -> "TaughtRows":
        """Of the positions that are ``there``."""
        ids = ids_BSK[there_BS].astype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        places = np.nonzero(there_BS)[1].astype(np.int32)
        return cls(there_BS.sum(axis=1, dtype=np.int32), places, ids, logits_BSK[there_BS].astype(np.float16))

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(places, ids, logits) of one row."""
        stop = int(self.counts[: row + 1].sum())
        part = slice(stop - int(self.counts[row]), stop)
        return self.places[part], self.ids[part], self.logits[part]


@dataclass(frozen=True)
class TeacherStore:
    """The folder of a teacher's logits; may be sent to worker processes."""

    folder: Path

    @property
    def about(self) -> JsonObject | None:
        """What the logits were made for and with; None where nothing is stored."""
        try:
            about: JsonObject = json.loads((self.folder / "teacher.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise LclmError(f"{self.folder / 'teacher.json'} is damaged ({error}); run lclm data teach again") from None
        return about

    def begin(self, about: JsonObject) -> None:
        """Store what the logits are made for; raises ``LclmError`` if the folder holds those of something else."""
        stored = self.about
        if stored is None:
            write_json(self.folder / "teacher.json", about)
        elif stored != about:
            names = [name for name in about if stored.get(name) != about[name]]
            raise LclmError(
                f"{self.folder} holds logits that were made with another {', '.join(names)}; name another folder"
                " (distill.offline), or delete it"
            )

    def has(self, number: int) -> bool:
        """Whether file ``number`` is stored."""
        return self.path(number).is_file()

    def write(self, number: int, rows: TaughtRows) -> int:
        """Store the rows of file ``number``, all or nothing; its size in bytes."""
        flat = {name: np.ascontiguousarray(column.reshape(-1)) for name, column in rows._asdict().items()}
        with replacing(self.path(number)) as partial:
            save_file(flat, partial)
        return self.path(number).stat().st_size

    def read(self, number: int, top_k: int) -> TaughtRows:
        """File ``number``; raises ``LclmError`` if it is missing or damaged."""
        path = self.path(number)
        try:
            columns = load_file(path)
            lists = (columns[name].reshape(-1, top_k) for name in ("ids", "logits"))
            return TaughtRows(columns["counts"], columns["places"], *lists)
        except FileNotFoundError:
            raise LclmError(f"{path} is missing: the teacher's logits are not complete; run lclm data teach") from None
        except (SafetensorError, KeyError, ValueError) as error:
            raise LclmError(f"{path} is damaged ({error}); delete it and run lclm data teach again") from None

    def path(self, number: int) -> Path:
        """The file of that number."""
        return self.folder / "rows" / f"{number // _IN_FOLDER:03d}" / f"{number:06d}.safetensors"


@dataclass(frozen=True)
class TeacherRows:
    """Gives the stored logits of global rows; may be sent to worker processes."""

    store: TeacherStore
    rows_per_file: int
    top_k: int
    row_length: int

    def __call__(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of ``Batch`` that begin with ``teacher_``, of these rows."""
        shape = (len(rows), self.row_length, self.top_k)
        ids_BSK, logits_BSK = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for place, row in enumerate(rows):
            number, within = divmod(row, self.rows_per_file)
            places, ids, logits = _file(self.store, number, self.top_k).row(within)
            ids_BSK[place, places], logits_BSK[place, places] = ids, logits
        return {"teacher_ids": ids_BSK, "teacher_logits": logits_BSK}


@lru_cache(_OPEN_FILES)
def _file(store: TeacherStore, number: int, top_k: int) -> TaughtRows:
    return store.read(number, top_k)


def open_teacher_rows(folder: str | Path, index_digest: str, top_k: int, row_length: int) -> TeacherRows:
    """The logits stored in ``folder`` for the rows of an index.

    Raises:
        LclmError: none are stored, or they are of other rows, or of fewer tokens.
    """
    store = TeacherStore(Path(folder))
    about = store.about
    if about is None:
        raise LclmError(f"{folder} holds no logits of a teacher; run lclm data teach first")
    if about["index_digest"] != index_digest:
        raise LclmError(
            f"{folder} holds logits for other rows than those of the stage: data, seed or row layout have changed; run"
            " lclm data teach with another distill.offline"
        )
    if about["top_k"] != top_k:
        raise LclmError(f"{folder} holds {about['top_k']} logits of a position; set distill.top_k to that")
    return TeacherRows(store, about["rows_per_file"], top_k, row_length)

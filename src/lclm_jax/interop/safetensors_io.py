"""Reading and writing folders of safetensors without torch, one tensor in memory at a time."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lclm_jax.errors import LclmError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
}


class CheckpointError(LclmError):
    """A folder of weights that cannot be read as what it should be."""


@dataclass(frozen=True, slots=True)
class Declared:
    """Name, shape and type (a key of ``DTYPES``) of a tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype][1].itemsize


class TensorFolder:
    """The tensors of one folder: a single safetensors file, or several with an index.

    Raises ``CheckpointError`` for a folder without safetensors (naming pickles, which are refused), for an index that
    disagrees with its files, and for damaged files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in _weight_files(folder):
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    if name in self._file_of:
                        raise CheckpointError(
                            f"{folder}: tensor {name} is in both {self._file_of[name].name} and {path.name}"
                        )
                    self._file_of[name] = path
                    self._note(name, file.get_slice(name))
        _check_index(folder, self._file_of)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """One tensor, or rows of it, as it is stored; the file is closed again, so none of it stays in memory."""
        with _open(self._file_of[name]) as file:
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]

    def _note(self, name: str, stored: Any) -> None:
        codes = {code: dtype for dtype, (code, _) in DTYPES.items()}
        if stored.get_dtype() not in codes:
            raise CheckpointError(
                f"{self._file_of[name]}: {name} is stored as {stored.get_dtype()}, not as one of {', '.join(DTYPES)};"
                " use a checkpoint that is not quantized"
            )
        self.shapes[name] = tuple(stored.get_shape())
        self.dtypes[name] = codes[stored.get_dtype()]


def write_folder(
    folder: Path,
    declared: Sequence[Declared],
    blocks: Callable[[str], Iterable[np.ndarray]],
    shard_bytes: int,
    stem: str = "model",
) -> None:
    """Write ``stem.safetensors``, or several shards with an index when they exceed ``shard_bytes``.

    ``blocks(name)`` gives consecutive rows of one tensor; each is converted and written before the next is asked for,
    so that memory holds one block, whatever the size of the model.
    """
    shards = _split(declared, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / f"{stem}.safetensors", shards[0], blocks)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, blocks)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.num_bytes for tensor in declared)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(declared: Iterable[Declared], shard_bytes: int) -> list[list[Declared]]:
    shards: list[list[Declared]] = [[]]
    used = 0
    for tensor in declared:
        if shards[-1] and used + tensor.num_bytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.num_bytes
    return shards


def _write_file(path: Path, shard: Sequence[Declared], blocks: Callable[[str], Iterable[np.ndarray]]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        end = offset + tensor.num_bytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data aligned to eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in shard:
            _write_tensor(file, tensor, blocks(tensor.name))


def _write_tensor(file: BinaryIO, tensor: Declared, blocks: Iterable[np.ndarray]) -> None:
    rows = 0
    for block in blocks:
        if block.shape[1:] != tensor.shape[1:]:
            raise CheckpointError(f"{tensor.name} has rows of {block.shape[1:]}, its declaration says {tensor.shape}")
        rows += block.shape[0]
        # astype with order="C" makes the transposed views contiguous, as the file needs them.
        file.write(block.astype(DTYPES[tensor.dtype][1], order="C").reshape(-1).view(np.uint8).data)
    if rows != tensor.shape[0]:
        raise CheckpointError(f"{tensor.name} has {rows} rows, its declaration says {tensor.shape}")


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name a folder that holds *.safetensors")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(_weight_map(indices[0]).values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(
                    f"{indices[0]} names {name!r}, which is not a file of that folder; fetch it again"
                )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickled weights ({pickled[0]}), refused because loading a pickle can run any code;"
            " convert them to safetensors where you trust their source"
        )
    raise CheckpointError(f"{folder} holds no *.safetensors; name the folder with the weights")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors ({error!r}); fetch it again") from None
    odd = next((name for name, file in found.items() if not isinstance(file, str)), None)
    if odd is not None:
        raise CheckpointError(f"{index}: the file of {odd} is {found[odd]!r}, not a name; fetch it again")
    return found


def _check_index(folder: Path, found: dict[str, Path]) -> None:
    for index in sorted(folder.glob("*.safetensors.index.json"))[:1]:
        listed = _weight_map(index)
        wrong = sorted(set(listed) ^ set(found)) or sorted(n for n in listed if found[n].name != listed[n])
        if wrong:
            raise CheckpointError(
                f"{index} and its files disagree about {wrong[0]} ({len(wrong)} in all); fetch both again"
            )


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch or write it again") from None

"""Reading and writing folders of safetensors without torch, one tensor in memory at a time."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
}


class CheckpointError(ValueError):
    """A folder of weights that cannot be read as what it should be."""


@dataclass(frozen=True, slots=True)
class Declared:
    """Name and shape of a tensor to write."""

    name: str
    shape: tuple[int, ...]


class TensorFolder:
    """The tensors of one folder: a single safetensors file, or several with an index.

    Raises ``CheckpointError`` for a folder without safetensors (naming pickles, which are refused), for an index that
    disagrees with its files, and for damaged files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(folder):
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    if name in self._file_of:
                        raise CheckpointError(
                            f"{folder}: tensor {name} stands in {self._file_of[name].name} and {path.name}"
                        )
                    self._file_of[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())
        _check_index(folder, self._file_of)

    def read(self, name: str) -> np.ndarray:
        """One tensor as it is stored."""
        with _open(self._file_of[name]) as file:
            return file.get_tensor(name)


def write_folder(
    folder: Path,
    declared: Sequence[Declared],
    read: Callable[[str], np.ndarray],
    dtype: str,
    shard_bytes: int,
    stem: str = "model",
) -> None:
    """Write ``stem.safetensors``, or several shards with an index when they exceed ``shard_bytes``.

    ``read(name)`` is asked for one tensor at a time and its result converted to ``dtype`` (a key of ``DTYPES``), so
    that memory holds one tensor, whatever the size of the model.
    """
    code, numpy_dtype = DTYPES[dtype]
    shards = _split(declared, numpy_dtype.itemsize, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / f"{stem}.safetensors", shards[0], read, code, numpy_dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, read, code, numpy_dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(_size(tensor) for tensor in declared) * numpy_dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _size(tensor: Declared) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _split(declared: Iterable[Declared], itemsize: int, shard_bytes: int) -> list[list[Declared]]:
    shards: list[list[Declared]] = [[]]
    used = 0
    for tensor in declared:
        size = _size(tensor) * itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    return shards


def _write_file(path: Path, shard: Sequence[Declared], read, code: str, dtype: np.dtype) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        end = offset + _size(tensor) * dtype.itemsize
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data aligned to eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in shard:
            array = np.asarray(read(tensor.name))
            if array.shape != tensor.shape:
                raise CheckpointError(f"{tensor.name} has shape {array.shape}, its declaration says {tensor.shape}")
            # astype with order="C" makes the transposed views contiguous, as the file needs them.
            file.write(array.astype(dtype, order="C").reshape(-1).view(np.uint8).data)


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
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors ({error!r}); fetch it again") from None


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

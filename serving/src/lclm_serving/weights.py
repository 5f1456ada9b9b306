"""The folders of an LCLM: fetched if they are a hub repository, and read as one set of weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lclm_serving.errors import LclmError

PARTS = ("decoder", "encoder", "adapter")
_FETCHED = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def local_folder(source: str | Path, **arguments: Any) -> Path:
    """The folder ``source``, or the snapshot of the hub repository of that name.

    Args:
        source: a folder, or OWNER/NAME.
        **arguments: of ``from_pretrained``; those that say where and how to fetch are used.
    """
    path = Path(source)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    chosen = {name: arguments[name] for name in _HUB_ARGUMENTS if arguments.get(name) is not None}
    return Path(snapshot_download(str(source), allow_patterns=list(_FETCHED), **chosen))


def is_layout(folder: Path) -> bool:
    """Whether the weights lie in ``decoder/``, ``encoder/`` and ``adapter/``."""
    return all((folder / part).is_dir() for part in PARTS)


def tensors(folder: Path, part: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor of one part, as the model of that part names them.

    Raises ``LclmError`` for a folder without safetensors, or with damaged ones; pickled weights are never read.
    """
    files = sorted((folder / part).glob("*.safetensors"))
    if not files:
        raise LclmError(f"{folder / part} holds no *.safetensors; pickled weights are never read: convert them")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    # Some encoders are published with the prefix of a causal language model.
                    yield name.removeprefix("model.") if part == "encoder" else name, file.get_tensor(name)
        except SafetensorError as error:
            raise LclmError(f"{path} is damaged ({error}); fetch or export it again") from None


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """All weights under the names of ``LclmForConditionalGeneration``."""
    prefixes = {"decoder": "language_model.", "encoder": "encoder.", "adapter": "adapter."}
    return {prefixes[part] + name: value for part in PARTS for name, value in tensors(folder, part)}

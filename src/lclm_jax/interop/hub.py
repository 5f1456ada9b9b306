"""Models by the id of a hub repository, or by the path of a local folder."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lclm_jax.errors import LclmError

# Weights, configuration and tokenizer; never pickles, never code.
FETCHED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "*tokenizer.model", "LICENSE*")
# The error of whichever HTTP client the library is built on, and OSError.
_FETCH_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_source(source: str, revision: str | None = None) -> Path:
    """The local folder ``source``, or the snapshot of the repository that it names, fetched if it is not cached.

    Args:
        source: a folder, or OWNER/NAME.
        revision: branch, tag or commit of the repository; None: its main branch.

    Raises:
        LclmError: neither a folder nor a repository that can be fetched, or one without safetensors.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or not _REPOSITORY.fullmatch(source):
        raise LclmError(f"{source} is neither a folder nor a repository id (OWNER/NAME); name a model folder")
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(FETCHED)))
    except _FETCH_ERRORS as error:
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise LclmError(
            f"there is no folder {source}, and the repository of that id cannot be fetched ({line}); name a local"
            " folder, check the id, or log in if it is private"
        ) from None
    if not any(folder.rglob("*.safetensors")):
        raise LclmError(
            f"repository {source} has no safetensors; pickled weights are never fetched, because loading a pickle can"
            " run any code: convert them where you trust their source"
        )
    return folder

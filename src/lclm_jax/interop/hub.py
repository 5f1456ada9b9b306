"""Models by the id of a hub repository, or by the path of a local folder; exports uploaded to one."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lclm_jax.errors import LclmError
from lclm_jax.paths import is_remote, local_copy, to_path

# Weights, configuration and tokenizer; never pickles, never code.
FETCHED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "*tokenizer.model", "LICENSE*")
# The error of whichever HTTP client the library is built on, and OSError.
_FETCH_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_source(source: str, revision: str | None = None) -> Path:
    """The local folder ``source``, or the snapshot of the repository that it names, fetched if it is not cached.

    Args:
        source: a folder (local, gs:// or s3://), or OWNER/NAME.
        revision: branch, tag or commit of the repository; None: its main branch.

    Raises:
        LclmError: neither a folder nor a repository that can be fetched, or one without safetensors.
    """
    if is_remote(source):
        try:
            return local_copy(to_path(source))
        except FileNotFoundError:
            raise LclmError(f"{source} holds no file; name a model folder") from None
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or not _REPOSITORY.fullmatch(source):
        raise LclmError(f"{source} is neither a folder nor a repository id (OWNER/NAME); name a model folder")
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(FETCHED)))
    except _FETCH_ERRORS as error:
        raise LclmError(
            f"there is no folder {source}, and the repository of that id cannot be fetched ({_line(error)}); name a"
            " local folder, check the id, or log in if it is private"
        ) from None
    if not any(folder.rglob("*.safetensors")):
        raise LclmError(
            f"repository {source} has no safetensors; pickled weights are never fetched, because loading a pickle can"
            " run any code: convert them where you trust their source"
        )
    return folder


def push_folder(folder: Path, repository: str, public: bool = False, endpoint: str | None = None) -> str:
    """Upload an export to a hub repository, which is made if it is not there; files that it has alone stay.

    Args:
        folder: a complete export.
        repository: OWNER/NAME.
        public: whether a repository that is made can be seen by everyone.
        endpoint: address of the hub; None: the usual one, or that of ``HF_ENDPOINT``.

    Returns:
        The address of the commit.

    Raises:
        LclmError: no repository id, or the hub refuses.
    """
    check_repository(repository)
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload an LCLM")
    except _FETCH_ERRORS as error:
        raise LclmError(
            f"{folder} is written, but the repository {repository} did not take it ({_line(error)}); check the id, log"
            " in with a token that may write, and export again"
        ) from None
    return commit.commit_url


def check_repository(repository: str) -> None:
    """Raise ``LclmError`` unless ``repository`` is OWNER/NAME."""
    if not _REPOSITORY.fullmatch(repository):
        raise LclmError(f"{repository!r} is no repository id; write OWNER/NAME")


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__

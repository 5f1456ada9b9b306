"""The ``.pt`` file of the PyTorch project's two-stage vLLM script. The one file of the package that imports torch.

Layout, as ``inference/vllm_inference/decode.py`` of LeonLixyz/LCLM (revision 289664c) reads it: a dictionary of
``embeds``, a list of float32 tensors ``[positions, hidden]``, and ``meta``, a list of dictionaries that it copies into
its answers. It is only ever written: reading such a file runs whatever code is in it.
"""

from collections.abc import Sequence
from pathlib import Path

from lclm_jax.errors import LclmError
from lclm_jax.files import replacing
from lclm_jax.types import ReadOnlyJson


def require_torch() -> None:
    """Raise ``LclmError``, saying how to install it, if torch is missing."""
    try:
        import torch  # noqa: F401 - asked for before any work is done
    except ImportError:
        raise LclmError(
            "--format pt needs torch, which is not installed; run pip install 'lclm-jax[torch]', or write safetensors"
        ) from None


def write_torch_file(source: Path, names: Sequence[str], meta: Sequence[ReadOnlyJson], out: Path) -> None:
    """Write the tensors ``names`` of the safetensors file ``source`` to ``out``; memory holds all that are not float32.

    Args:
        source: file with tensors ``[positions, hidden]``.
        names: its tensors, in the order of the list.
        meta: one dictionary per tensor, of JSON values.
        out: the ``.pt`` file, which appears when it is complete.
    """
    import torch
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        embeds = [file.get_tensor(name).float() for name in names]
        with replacing(out) as part:
            torch.save({"embeds": embeds, "meta": [dict(entry) for entry in meta]}, part)

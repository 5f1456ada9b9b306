"""The adapters by name.

A new one is a file in ``model/adapters/`` and a line here (``docs/how-to/add-a-pooling.md``).
"""

from typing import Literal, NamedTuple


class AdapterRow(NamedTuple):
    """What everything but its own file needs to know of an adapter."""

    code: str
    """``module:class`` (``model/adapter.py`` says how it is called); loaded on use."""
    blocks: Literal["encoder", "decoder"] | None = None
    """Tower whose blocks attend over the latents of a span: the encoder's before the MLP, the decoder's after it."""
    norm_first: bool = False
    """Whether it begins with an RMSNorm of scale ``norm/scale``, which is applied for it: by the pooling kernel if one
    runs, else before it is called."""
    published: bool = False
    """Whether the PyTorch implementation has it, so that a model can be exported."""


ADAPTERS: dict[str, AdapterRow] = {
    "mlp": AdapterRow("lclm_jax.model.adapter:MlpAdapter", norm_first=True, published=True),
    "attn_mlp": AdapterRow("lclm_jax.model.adapter:MlpAdapter", blocks="encoder", published=True),
    "mlp_attn": AdapterRow("lclm_jax.model.adapter:MlpAdapter", blocks="decoder", norm_first=True, published=True),
    "linear": AdapterRow("lclm_jax.model.adapters.linear:LinearAdapter"),
}

"""``config.json`` at the top of an LCLM's folder, as a configuration of transformers."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from lclm_serving.engine_config import MODEL_TYPE
from lclm_serving.errors import LclmError

POOLINGS = ("mean", "concat", "eos")
MASKS = ("causal", "bidirectional")
ADAPTERS = ("mlp", "attn_mlp", "mlp_attn")
FAMILIES = ("qwen3", "qwen2", "llama", "mistral")
"""``model_type`` of a tower."""


class LclmConfig(PretrainedConfig):
    """Both towers, the compression between them, and the ids that mark it.

    Args:
        text_config: the decoder's configuration, or its keys.
        encoder_config: the same of the encoder.
        compression_ratio: N, encoder tokens of one latent.
        encoder_window_size: W, tokens that the encoder reads together; a multiple of N.
        pooling: ``mean``, ``concat`` or ``eos``.
        encoder_mask_type: ``causal`` or ``bidirectional``.
        boundary_overlap: O, tokens beside a window that are read and not pooled.
        adapter_type: ``mlp``, ``attn_mlp`` or ``mlp_attn``.
        num_adapter_layers: attention layers of the last two.
        memory_start_id: decoder's id of the tag that opens a span; -1: there is none.
        memory_end_id: the same of the tag that closes it.
        memory_id: the same of the placeholder that a latent takes.
        encoder_pad_id: encoder's id that marks a latent (``eos`` pooling).
        fingerprint: tells the encoder from every other one; "": it is not known.
        **kwargs: keys that all configurations have.

    Raises:
        LclmError: a value that no LCLM has.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": AutoConfig, "encoder_config": AutoConfig}  # noqa: RUF012 - as transformers reads it

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        encoder_config: dict[str, Any] | PretrainedConfig | None = None,
        compression_ratio: int = 16,
        encoder_window_size: int = 1024,
        pooling: str = "mean",
        encoder_mask_type: str = "causal",
        boundary_overlap: int = 0,
        adapter_type: str = "mlp",
        num_adapter_layers: int = 1,
        memory_start_id: int = -1,
        memory_end_id: int = -1,
        memory_id: int = -1,
        encoder_pad_id: int | None = None,
        fingerprint: str = "",
        **kwargs: Any,
    ):
        self.text_config = _backbone(text_config)
        self.encoder_config = _backbone(encoder_config)
        self.compression_ratio = compression_ratio
        self.encoder_window_size = encoder_window_size
        self.pooling = pooling
        self.encoder_mask_type = encoder_mask_type
        self.boundary_overlap = boundary_overlap
        self.adapter_type = adapter_type
        self.num_adapter_layers = num_adapter_layers
        self.memory_start_id = memory_start_id
        self.memory_end_id = memory_end_id
        self.memory_id = memory_id
        self.encoder_pad_id = encoder_pad_id
        self.fingerprint = fingerprint
        super().__init__(**kwargs)
        self._check()

    @property
    def latent_size(self) -> int:
        """Width of a pooled vector: the encoder's, or N times it with ``concat``."""
        width = int(self.encoder_config.hidden_size)
        return width * self.compression_ratio if self.pooling == "concat" else width

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """The decoder's configuration: what generates text."""
        return self.text_config

    def _check(self) -> None:
        for name, known in (("pooling", POOLINGS), ("encoder_mask_type", MASKS), ("adapter_type", ADAPTERS)):
            if getattr(self, name) not in known:
                raise LclmError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        ratio, window = self.compression_ratio, self.encoder_window_size
        if ratio < 1 or window < ratio or window % ratio or self.boundary_overlap < 0:
            raise LclmError(
                f"compression_ratio={ratio}, encoder_window_size={window}, boundary_overlap={self.boundary_overlap}:"
                " the window must be a multiple of the ratio, and the overlap 0 or more; fetch config.json again"
            )
        if self.pooling == "eos" and self.encoder_pad_id is None and self.memory_id >= 0:
            raise LclmError("pooling=eos marks latents with encoder_pad_id, which is missing; add the config again")


def _backbone(values: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    if values is None:
        return CONFIG_MAPPING["qwen3"]()
    if isinstance(values, PretrainedConfig):
        return values
    rest = dict(values)
    family = rest.pop("model_type", None)
    if family not in FAMILIES:
        raise LclmError(f"model_type={family!r} of a tower is not supported; use one of {', '.join(FAMILIES)}")
    return CONFIG_MAPPING[family](**rest)

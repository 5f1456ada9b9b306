"""LCLMs in vLLM: memory spans are items of a modality of their own, encoded by a tower and spliced by vLLM.

vLLM calls ``register`` in each of its processes (entry point ``vllm.general_plugins``). Everything here uses interfaces
that vLLM may change with any minor release, so one minor release is required and tested.
"""

from typing import Any

from lclm_serving.engine_config import ARCHITECTURE, MODEL_TYPE


def register() -> None:
    """Tell vLLM of the model, its prompts and its metrics; calling it again changes nothing."""
    from transformers import AutoConfig
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from lclm_serving.config import LclmConfig
    from lclm_serving.vllm_plugin import counters
    from vllm import ModelRegistry

    AutoConfig.register(MODEL_TYPE, LclmConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:LclmForConditionalGeneration")
    if MODEL_TYPE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(MODEL_TYPE, f"{__name__}.renderer", "LclmRenderer")
    if MODEL_TYPE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODEL_TYPE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    _choose_renderer()
    counters.share()


def _choose_renderer() -> None:
    """Let ``vllm serve EXPORT`` use our renderer without an option."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class LclmModelConfig(VerifyAndUpdateConfig):
        """Changes vLLM's settings of an LCLM."""

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            """Prompts are cut at their memory tags before they are tokenized."""
            if model_config.tokenizer_mode in ("auto", "hf"):
                model_config.tokenizer_mode = MODEL_TYPE

    MODELS_CONFIG_MAP.setdefault(ARCHITECTURE, LclmModelConfig)

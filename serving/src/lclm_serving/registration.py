"""The names of this package in transformers' registries."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from lclm_serving.config import LclmConfig
from lclm_serving.engine_config import MODEL_TYPE
from lclm_serving.modeling import LclmForConditionalGeneration
from lclm_serving.processing import LclmProcessor


def register_with_transformers() -> None:
    """Let the Auto classes load LCLMs; calling it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, LclmConfig, exist_ok=True)
    AutoModelForCausalLM.register(LclmConfig, LclmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(LclmConfig, LclmProcessor, exist_ok=True)

"""Latent context language models in transformers and vLLM.

Importing this package makes ``AutoConfig``, ``AutoModelForCausalLM`` and ``AutoProcessor`` of transformers load a
folder that ``lclm export`` wrote; vLLM finds its plugin by an entry point. Neither runs code from a model's folder.
"""

from lclm_serving.registration import register_with_transformers

__all__ = ["register_with_transformers"]

register_with_transformers()

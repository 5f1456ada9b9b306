"""Attention, pooling and cross-entropy as plain functions of arrays; of the configuration, the registries alone."""

from lclm_jax.kernels.attention import attention
from lclm_jax.kernels.cross_entropy import cross_entropy, overlaid_logits
from lclm_jax.kernels.pooling import pool

__all__ = ["attention", "cross_entropy", "overlaid_logits", "pool"]

"""LCLM in JAX: pretraining of latent context language models on TPU pods and GPU clusters."""

__version__ = "0.1.0"

"""Measurements on held-out text: what latents are worth, and how well they repeat verbatim."""

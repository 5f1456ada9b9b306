"""Measurements: kernels beside the alternatives of libraries, and the whole train step beside PyTorch."""

"""Registries: a pooling or an adapter is one row here and one file in model/, a kernel one in kernels/."""

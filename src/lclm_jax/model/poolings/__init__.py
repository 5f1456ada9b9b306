"""Poolings with parameters, one a file; ``config/registry/poolings.py`` names them."""

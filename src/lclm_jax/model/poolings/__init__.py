"""Poolings with parameters, one a file; ``config/poolings.py`` names them."""

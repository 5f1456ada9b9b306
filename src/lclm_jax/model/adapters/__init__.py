"""Further adapters, one a file; ``config/registry/adapters.py`` names them."""

"""Further adapters, one a file; ``config/adapters.py`` names them."""

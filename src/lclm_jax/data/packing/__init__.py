"""Records to packed rows: spans, windows, mixture, rows."""

"""Golden cases: our numbers beside those of the PyTorch implementation."""

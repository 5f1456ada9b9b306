"""In and out of Hugging Face folders, and comparison with the PyTorch implementation."""

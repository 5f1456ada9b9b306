"""Tokenizers, chat templates, memory tags, span placement and the examples made of them."""
